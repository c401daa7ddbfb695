"""A machine whose host floods it while it takes nothing; then it is to be there again at once.

    unshare --net python net_flood.py SECONDS

Prints the guest's ping right after, and how many bytes our processes have grown by.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))
from net_peer import shell

from microvm import Machine, MachineConfig, NetConfig
from microvm.testing.namespace import ip, tap_interface

HOST, GUEST, MAC = "10.77.0.1", "10.77.0.2", "02:00:00:00:00:01"
BURST = 500


async def flood(seconds: float) -> int:
    """Datagrams to a guest that does not even answer ARP; how many the TAP took."""
    sent = 0
    ip("neigh", "replace", GUEST, "lladdr", MAC, "dev", "mvtest0")
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect((GUEST, 9))
        with trio.move_on_after(seconds):
            while True:
                for _ in range(BURST):
                    await sock.send(bytes(1400))
                sent += BURST
    return sent


def rss_bytes() -> int:
    """Of this process, which has the card."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def main(seconds: float) -> None:
    """Boot, be flooded, and say how it went."""
    net = NetConfig(backend="tap", options={"name": "mvtest0"}, mac=MAC)
    # Nobody here would answer DHCP: a command would wait for it in vain.
    config = MachineConfig(mem_size_mib=64, nets=(net,), cmdline="microvm.dhcp=")
    async with Machine(config) as machine:
        await shell(machine, f"ip link set eth0 up; ip addr add {GUEST}/24 dev eth0")
        await shell(machine, f"ping -c 1 -W 5 {HOST}; ip link set eth0 down")
        before = rss_bytes()
        sent = await flood(seconds)
        grown = rss_bytes() - before
        print(await shell(machine, f"ip link set eth0 up; ping -c 1 -W 1 {HOST}"))
        print(f"took {sent} datagrams, grew by {grown} bytes")


if __name__ == "__main__":
    ip("link", "set", "lo", "up")
    with tap_interface("mvtest0", f"{HOST}/24"):
        trio.run(main, float(sys.argv[1]))
