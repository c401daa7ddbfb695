"""Kernels loaded as the engine loads them, and what came of it; for the tests of loading."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from microvm.abc import MachinePlan
from microvm.arch.x86_64.registers import RegisterValue
from microvm.boot import protocols
from microvm.boot.files import kernel_head
from microvm.config import MachineConfig
from microvm.errors import ImageError
from microvm.memory import GuestMemory
from microvm.testing.boot_files import PT_NOTE, PVH_NOTE, note, segment
from microvm.timeline import BootTimeline

MIB = 1 << 20
CODE = bytes(range(256)) * 16
INITRD = b"070701" + b"init" * 1000
NO_NOTE = note(b"GNU\0", 3, bytes(20))
NOTES = segment(PT_NOTE, 0x400, len(PVH_NOTE))
CMDLINE = "console=ttyS0 quiet"

Registers = Mapping[str, RegisterValue]


class Loader:
    """Writes files, has them loaded as the engine does, and remembers what came of it."""

    def __init__(self, folder: Path, memory: GuestMemory) -> None:
        self.kernel, self.initrd, self.memory = folder / "kernel", folder / "initrd", memory

    def plan(self, cmdline: str = CMDLINE) -> MachinePlan:
        return MachinePlan(
            config=MachineConfig(),
            kernel=self.kernel,
            initrd=self.initrd if self.initrd.exists() else None,
            cmdline=cmdline,
            devices=(),
            timeline=BootTimeline(),
        )

    def load(
        self, kernel: bytes, *, initrd: bytes | None = INITRD, cmdline: str = CMDLINE
    ) -> Registers:
        self.kernel.write_bytes(kernel)
        if initrd is not None:
            self.initrd.write_bytes(initrd)
        protocol = protocols.recognise(kernel_head(self.kernel), "x86_64")
        assert protocol is not None
        return protocol.load(self.plan(cmdline), self.memory)

    def refusal(self, kernel: bytes, **more: object) -> str:
        with pytest.raises(ImageError) as caught:
            self.load(kernel, **more)  # type: ignore[arg-type]
        assert caught.value.remedy
        return caught.value.message

    def u32(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 4), "little")

    def u64(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 8), "little")
