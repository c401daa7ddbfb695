"""Names and pings by passt, in the network namespace that this program is started in.

    unshare --net python net_over_passt.py

In there port 53 is free, and the sockets that passt sends pings by can be allowed (icmp(7),
ping_group_range). A program of its own for the reason that net_over_tap.py is one.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))
from net_peer import shell

from microvm import Machine, MachineConfig, NetConfig
from microvm.testing.namespace import ip, tap_interface

ADDRESS, GATEWAY = "192.0.2.2", "192.0.2.1"
NAME, MEANS = "somewhere.example", "198.51.100.7"
A = 1
"""Of record types the one that is known here (RFC 1035, 3.2.2 TYPE values)."""


def answer(query: bytes) -> bytes:
    """To a query: the address, if it is for `NAME`'s; else that there is none (RFC 1035, 4.1)."""
    end = query.index(b"\0", 12) + 5
    wanted = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split(".")) + b"\0"
    known = query[12:end] == wanted + A.to_bytes(2, "big") + b"\0\1"
    head = query[:2] + b"\x81\x80" + b"\0\1" + known.to_bytes(2, "big") + bytes(4)
    record = b"\xc0\x0c" + b"\0\1\0\1" + b"\0\0\0\x3c" + b"\0\4" + socket.inet_aton(MEANS)
    return head + query[12:end] + (record if known else b"")


async def serve_names(sock: trio.socket.SocketType) -> None:
    while True:
        query, sender = await sock.recvfrom(512)
        await sock.sendto(answer(query), sender)


async def main() -> None:
    """Boot, ask, and print what was answered."""
    options = {"host_access": True, "dns": [GATEWAY]}
    config = MachineConfig(nets=(NetConfig(backend="passt", options=options),))
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 53))
        async with trio.open_nursery() as nursery, Machine(config) as machine:
            nursery.start_soon(serve_names, sock)
            print(await shell(machine, f"nslookup -type=a {NAME}"))
            print(await shell(machine, f"ping -c 3 -W 5 {NAME}"))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    ip("link", "set", "lo", "up")
    # For any group: passt becomes nobody.
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 4294967294")
    with tap_interface("mvnowhere", f"{ADDRESS}/24"):
        ip("route", "add", "default", "via", GATEWAY)
        # passt leads pings to where they go, host_access or not.
        ip("addr", "add", f"{MEANS}/32", "dev", "lo")
        trio.run(main)
