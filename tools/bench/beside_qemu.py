"""In the lab: our disk and network card under our VMM, QEMU's own under QEMU, on one KVM.

Two guests with the same kernel, initramfs and memory run at once, and take turns: while one works,
the other sleeps. Disks are files in the page cache. Cards hang on TAP interfaces; at their other
end is this process, the same for both. The guest's own time is in no figure of CPU time.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from socket import SHUT_WR, create_server, socket
from typing import Any

from microvm import Machine, MachineConfig, NetConfig
from microvm.testing.namespace import tap_interface
from tools.bench.blk import GIB, beside, images, measure_disks, our_disk, qemus_disk
from tools.bench.side import Side, descendants

TAPS = {"ours": ("mvbench0", "10.79.0"), "qemus": ("mvbench1", "10.79.1")}
TRANSFER = 32 << 20
PINGS = 500
GUEST_MIB = 256


@asynccontextmanager
async def _side(config: MachineConfig, subnet: str) -> AsyncIterator[Side]:
    before = descendants()
    async with Machine(config) as machine:
        script = f"ip link set eth0 up; ip addr add {subnet}.2/24 dev eth0"
        await machine.run(["sh", "-c", script], check=True)
        yield Side(machine, descendants() - before)


def _configs(folder: Path) -> dict[str, MachineConfig]:
    # Nobody answers DHCP here, and commands would wait for it.
    common: dict[str, Any] = {
        "mem_size_mib": GUEST_MIB,
        "cmdline": "microvm.dhcp=",
        # This process is busy itself, as the other end of both networks.
        "isolation": "process",
    }
    card = f"tap,id=net0,ifname={TAPS['qemus'][0]},script=no,downscript=no,vnet_hdr=on"
    theirs = (*qemus_disk(folder / "qemus"), "-netdev", card)
    theirs += ("-device", "virtio-net-device,netdev=net0")
    return {
        "ours": MachineConfig(
            backend="kvm",
            drives=[our_disk(folder / "ours")],
            nets=[NetConfig(backend="tap", options={"name": TAPS["ours"][0]})],
            **common,
        ),
        "qemus": MachineConfig(
            backend="qemu", backend_options={"accel": "kvm", "extra_args": theirs}, **common
        ),
    }


async def beside_qemu(pairs: int) -> dict[str, Any]:
    """The whole measure."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images(folder, mib=128)
        for name, subnet in TAPS.values():
            stack.enter_context(tap_interface(name, f"{subnet}.1/24"))
        configs = _configs(folder)
        async with (
            _side(configs["ours"], TAPS["ours"][1]) as ours,
            _side(configs["qemus"], TAPS["qemus"][1]) as qemus,
        ):
            sides = {"ours": ours, "qemus": qemus}
            return {
                "blk": await measure_disks(sides, pairs),
                "net": await _measure_cards(sides, pairs),
            }


async def _measure_cards(sides: dict[str, Side], pairs: int) -> dict[str, Any]:
    programs = {name: await side.program("net_load") for name, side in sides.items()}
    with _Peer() as peer:
        loads = {
            "tcp_send": ("send", str(peer.sink), str(TRANSFER)),
            "tcp_receive": ("receive", str(peer.source), str(TRANSFER)),
            "ping": ("ping", str(PINGS)),
        }
        report = {}
        for load, (verb, *words) in loads.items():
            took: dict[str, list[float]] = {name: [] for name in sides}
            cpu: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(pairs):
                for name, side in sides.items():
                    before = side.cpu_s()
                    argv = [programs[name], verb, f"{TAPS[name][1]}.1", *words]
                    done = await side.machine.run(argv, check=True)
                    per = PINGS if verb == "ping" else TRANSFER >> 20
                    took[name].append(int(done.stdout) / per)
                    spent = side.cpu_s() - before
                    cpu[name].append(
                        spent * 1e6 / PINGS if verb == "ping" else spent * GIB / TRANSFER
                    )
            report[load] = beside(took, cpu, unit="us" if verb == "ping" else "us_per_mib")
            if verb == "ping":
                for name in sides:
                    report[load][f"{name}_cpu_us"] = report[load].pop(f"{name}_cpu_s_per_gib")
        return report


class _Peer:
    """A sink that answers one byte at the end, and a source without one, each on a port."""

    def __enter__(self) -> _Peer:
        self._servers = [create_server(("0.0.0.0", 0)), create_server(("0.0.0.0", 0))]
        self.sink, self.source = (server.getsockname()[1] for server in self._servers)
        for server, serve in zip(self._servers, (_take, _give), strict=True):
            threading.Thread(target=self._accept, args=(server, serve), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    def _accept(self, server: socket, serve: Any) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                serve(connection)


def _take(connection: socket) -> None:
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass
    connection.sendall(b"!")


def _give(connection: socket) -> None:
    connection.sendall(bytes(TRANSFER))
    connection.shutdown(SHUT_WR)
