"""What the tests of the qemu backend share: guests of a few bytes, plans, a census."""

import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from microvm import BootSource, MachineConfig
from microvm.abc import AttachedDevice, MachinePlan, VirtioDevice
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.census import Census
from microvm.timeline import BootTimeline
from microvm_qemu import plugin
from microvm_qemu._platform import QemuPlatform

ENTRY = 0x200
"""Where the boot loader enters a bzImage in real mode: a jump over the header."""
CODE = 0x26C
"""Where that jump leads in `tiny_kernel`, whose setup ends at 0x400. DS is the image's start."""

HALT = bytes.fromhex("fa f4 eb fd")  # cli; 1: hlt; jmp 1b
SPIN = bytes.fromhex("fa eb fe")  # cli; 1: jmp 1b
FLOOD = bytes.fromhex("ba f8 03 b0 78 ee eb fd")  # mov dx, 0x3f8; mov al, 'x'; 1: out; jmp 1b

MicroKernel = Callable[..., Path]
PlanOf = Callable[..., MachinePlan]


RESET_BYTES = 6


def printing(text: bytes, ending: bytes | None) -> bytes:
    """Code that prints on COM1, then does `ending`; None is a triple fault."""
    loop = bytes.fromhex("ac 84 c0 74 03 ee eb f8")  # 1: lodsb; test; jz 2f; out; jmp 1b; 2:
    text_at = CODE + 6 + len(loop) + (RESET_BYTES if ending is None else len(ending))
    if ending is None:
        zeros_at = text_at + len(text)
        ending = bytes.fromhex("0f 01 1e") + struct.pack("<H", zeros_at) + b"\xcc"  # lidt; int3
    return b"\xbe" + struct.pack("<H", text_at) + bytes.fromhex("ba f8 03") + loop + ending + text


@pytest.fixture
def micro_kernel(tmp_path: Path) -> MicroKernel:
    """Write a kernel that prints a text and then halts, spins, floods the console or resets."""

    def make(ending: str = "halt", text: bytes = b"", name: str = "kernel") -> Path:
        endings = {"halt": HALT, "spin": SPIN, "flood": FLOOD, "reset": None}
        program = printing(text, endings[ending])
        path = tiny_kernel(tmp_path / name)
        image = bytearray(path.read_bytes())
        assert CODE + len(program) + 8 <= 1024
        image[ENTRY] = 0xEB
        image[CODE : CODE + len(program)] = program
        path.write_bytes(image)
        return path

    return make


@pytest.fixture
def plan_of() -> PlanOf:
    """A plan for a kernel, as core would make it."""

    def make(
        kernel: Path, devices: Sequence[VirtioDevice] = (), *, cmdline: str = "", **config: Any
    ) -> MachinePlan:
        return MachinePlan(
            config=MachineConfig(boot=BootSource(kernel=kernel), **config),
            kernel=kernel,
            initrd=None,
            cmdline=cmdline,
            devices=tuple(AttachedDevice(name=f"d{i}", device=d) for i, d in enumerate(devices)),
            timeline=BootTimeline(),
        )

    return make


@pytest.fixture
def platform() -> QemuPlatform:
    """The platform on the system's QEMU."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    made = plugin.create({})
    assert isinstance(made, QemuPlatform)
    return made


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Descriptors, threads and child processes are as many after the test as before."""
    before = Census.take()
    yield
    assert Census.take() == before
