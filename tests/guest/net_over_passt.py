"""Names and pings by passt, in the network namespace that this program is started in.

    unshare --net --mount python net_over_passt.py CASE

In there port 53 is free, the host's files on name servers can be others, and the sockets that passt
sends pings by can be allowed (icmp(7), ping_group_range). A program of its own for the reason that
net_over_tap.py is one.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

sys.path.insert(0, str(Path(__file__).parent))
from net_peer import shell

from microvm import Machine, MachineConfig, NetConfig
from microvm.testing.namespace import ip, tap_interface

ADDRESS, GATEWAY = "192.0.2.2", "192.0.2.1"
UPSTREAM = "198.51.100.53"
NAME, MEANS = "somewhere.example", "198.51.100.7"
A = 1
"""Of record types the one that is known here (RFC 1035, 3.2.2 TYPE values)."""


@attrs.frozen
class Case:
    """What the card is given, where the name server is, and what the host says of name servers."""

    options: Mapping[str, Any]
    server: str
    resolv_conf: str
    upstream: str | None = None
    """What systemd-resolved would have written down."""


CASES = {
    "given": Case({"host_access": True, "dns": [GATEWAY]}, "127.0.0.1", "nameserver 127.0.0.53\n"),
    "systemd-resolved": Case({}, UPSTREAM, "nameserver 127.0.0.53\n", f"nameserver {UPSTREAM}\n"),
    "the gateway's": Case({"host_access": True}, GATEWAY, f"nameserver {GATEWAY}\n"),
}


def say_name_servers(case: Case) -> None:
    """Mount the files that say so; our mount namespace goes with us."""
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    if case.upstream is not None:
        upstream = Path("/run/systemd/resolve/resolv.conf")
        upstream.parent.mkdir(parents=True)
        upstream.write_text(case.upstream)
    ours = Path("/run/ours.conf")
    ours.write_text(case.resolv_conf)
    # It may be a link to what /run had.
    resolv_conf = Path("/etc/resolv.conf").resolve()
    resolv_conf.parent.mkdir(parents=True, exist_ok=True)
    resolv_conf.touch()
    subprocess.run(["mount", "--bind", ours, resolv_conf], check=True)


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


async def main(case: Case) -> None:
    """Boot, ask, and print what was answered."""
    config = MachineConfig(nets=(NetConfig(backend="passt", options=case.options),))
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((case.server, 53))
        async with trio.open_nursery() as nursery, Machine(config) as machine:
            nursery.start_soon(serve_names, sock)
            print(await shell(machine, f"nslookup -type=a {NAME}"))
            print(await shell(machine, f"ping -c 3 -W 5 {NAME}"))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    chosen = CASES[sys.argv[1]]
    say_name_servers(chosen)
    ip("link", "set", "lo", "up")
    # For any group: passt becomes nobody.
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 4294967294")
    with tap_interface("mvnowhere", f"{ADDRESS}/24"):
        ip("route", "add", "default", "via", GATEWAY)
        # passt leads pings to where they go, host_access or not.
        for address in (MEANS, UPSTREAM, GATEWAY):
            ip("addr", "add", f"{address}/32", "dev", "lo")
        trio.run(main, chosen)
