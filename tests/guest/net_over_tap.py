"""A machine on a TAP interface, in the network namespace that this program is started in.

    unshare --net python net_over_tap.py UDP_PING SIZE

A program of its own, since threads that trio keeps would stay in a namespace for good.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))
from net_peer import check_traffic, peer_at, shell

from microvm import Machine, MachineConfig, NetConfig
from microvm.testing.namespace import ip, tap_interface

HOST, GUEST = "10.77.0.1", "10.77.0.2"


async def main(udp_ping: bytes, size: int) -> None:
    """Boot, speak, and say how it went."""
    net = NetConfig(backend="tap", options={"name": "mvtest0"}, mac="02:00:00:00:00:01")
    # Nobody here would answer DHCP: a command would wait for it in vain.
    config = MachineConfig(mem_size_mib=128, nets=(net,), cmdline="microvm.dhcp=")
    async with peer_at(HOST, size) as peer, Machine(config) as machine:
        await shell(machine, f"ip link set eth0 up; ip addr add {GUEST}/24 dev eth0")
        print(await shell(machine, f"ping -c 3 -W 5 {HOST}"))
        await check_traffic(machine, peer, HOST, udp_ping)


if __name__ == "__main__":
    ip("link", "set", "lo", "up")
    with tap_interface("mvtest0", f"{HOST}/24"):
        trio.run(main, Path(sys.argv[1]).read_bytes(), int(sys.argv[2]))
