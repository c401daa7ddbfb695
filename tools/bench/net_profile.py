"""Where our half's time goes while a guest sends and receives by TCP through a TAP interface.

    python -m tools.bench.net_profile [MIB]

Where KVM boots Linux, so here: in the lab. What is profiled is the thread of trio's loop, which has
all of the device; the vCPU is a thread of its own, and the other end of the TAP a process. A
profiler makes Python slower and system calls not, so the shares of calls are a bit too small.
"""

from __future__ import annotations

import cProfile
import pstats
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import trio

from microvm import Machine, MachineConfig, NetConfig
from microvm.testing.namespace import tap_interface
from tools.bench.side import Side

TAP, HOST, GUEST = "mvprofile0", "10.80.0.1", "10.80.0.2"
PEER = """
import socket, sys
way, size = sys.argv[1], int(sys.argv[2])
server = socket.create_server(("0.0.0.0", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
if way == "receive":
    connection.sendall(bytes(size))
else:
    while size:
        size -= len(connection.recv(1 << 18))
    connection.sendall(b"!")
connection.recv(1)
"""


async def profiled(side: Side, program: str, way: str, size: int) -> None:
    """Print what the loop's thread did during one transfer."""
    words = [sys.executable, "-c", PEER, way, str(size)]
    with ExitStack() as stack:
        peer = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))  # noqa: ASYNC220
        stack.callback(peer.kill)
        assert peer.stdout is not None
        port = peer.stdout.readline().strip()
        before = counters(side.machine)
        with cProfile.Profile() as profiler:
            await side.machine.run([program, way, HOST, port, str(size)], check=True)
        counted = {name: n - before[name] for name, n in counters(side.machine).items()}
        print(f"--- the guest would {way}: {counted}")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(24)


def counters(machine: Machine) -> dict[str, Any]:
    """Of the card."""
    return dict(machine.metrics.devices["net0"])


async def main(size: int) -> None:
    """Both ways."""
    net = NetConfig(backend="tap", options={"name": TAP})
    config = MachineConfig(backend="kvm", nets=[net], cmdline="microvm.dhcp=")
    async with Machine(config) as machine:
        side = Side(machine, frozenset())
        script = f"ip link set eth0 up; ip addr add {GUEST}/24 dev eth0"
        await machine.run(["sh", "-c", script], check=True)
        program = await side.program("net_load")
        for way in ("send", "receive"):
            await profiled(side, program, way, size)


if __name__ == "__main__":
    with tap_interface(TAP, f"{HOST}/24"):
        trio.run(main, int((sys.argv[1:] or ["16"])[0]) << 20)
