"""Our own VMM on the host's KVM, with guests of a few bytes: start, and memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

import microvm_kvm.plugin
from microvm import BootSource, DeviceConfig, Machine, MachineConfig
from microvm.arch.x86_64 import layout
from microvm.plugins import DeviceFactory
from microvm.testing.micro_guest import MicroGuest
from microvm.testing.mmio_bench import UpperDevice
from microvm.testing.plugins import plugin_manager
from tools.bench.stats import summary

MEM_SIZE_MIB = 64


class Seen(UpperDevice):
    """Notes when its configuration space is first read: the guest's first instruction."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    def read_config(self, offset: int, length: int) -> bytes:
        self.at = time.perf_counter()
        return bytes(length)


def kernel(folder: str, guest: MicroGuest) -> Path:
    path = Path(folder) / "guest.elf"
    path.write_bytes(guest.image())
    return path


def config(path: Path, **more: Any) -> MachineConfig:
    return MachineConfig(
        backend="kvm",
        backend_options={"small_guests": True},
        mem_size_mib=MEM_SIZE_MIB,
        vsock=None,
        provisioners=(),
        boot=BootSource(kernel=path),
        **more,
    )


async def first_instruction_ms(folder: str, starts: int) -> list[float]:
    """From `Machine(...)` to the guest's first instruction, in an interpreter that has done it."""
    guest = MicroGuest()
    first = layout.virtio_mmio_base(0) + 0x100
    guest.code(b"\xa1" + first.to_bytes(4, "little") + b"\xeb\xfe")  # mov eax, [first]; jmp .
    path = kernel(folder, guest)
    samples = []
    for _ in range(starts + 1):
        device = Seen()
        factory = DeviceFactory(
            name="seen", summary="notes", virtio_id=42, create=lambda options, d=device: d
        )
        plugins = plugin_manager(factory, plugins={"backend/kvm": microvm_kvm.plugin})
        began = time.perf_counter()
        async with Machine(config(path, devices=[DeviceConfig(name="seen")]), plugins=plugins):
            while not device.at:  # noqa: ASYNC110 - set by the vCPU
                await trio.sleep(0.0005)
        samples.append((device.at - began) * 1e3)
    return samples[1:]


IDLE = """
import sys, trio
from pathlib import Path
from microvm import Machine
from tools.bench.vmm import config, pss_kib
async def main():
    async with Machine(config(Path(sys.argv[1]))):
        await trio.sleep(0.5)
        print(*pss_kib())
trio.run(main)
"""


def pss_kib() -> tuple[int, int]:
    """The process's proportional set size, and that of the guest's RAM within it."""
    whole = guest = size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Size":
            size = int(rest.split()[0])
        elif name == "Pss":
            pss = int(rest.split()[0])
            whole += pss
            if size >= MEM_SIZE_MIB << 10:
                guest += pss
    return whole, guest


def idle_memory(folder: str) -> dict[str, int]:
    """An idle guest: halted, with interrupts on."""
    guest = MicroGuest()
    guest.code(b"\xfb\xf4\xeb\xfd")  # sti; hlt; jmp back to hlt
    path = kernel(folder, guest)
    done = subprocess.run(
        [sys.executable, "-c", IDLE, str(path)], stdout=subprocess.PIPE, text=True, check=True
    )
    whole, of_guest = map(int, done.stdout.split())
    return {"pss_kib": whole, "guest_kib": of_guest, "without_guest_kib": whole - of_guest}


def vmm(pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "machine_to_first_instruction_ms": summary(
                trio.run(first_instruction_ms, folder, 3 * pairs)
            ),
            "idle_64_mib_guest": idle_memory(folder),
        }
