"""The segments that a kernel is entered with, and the table they would have been loaded from.

The selectors are those that Linux asks for: code 0x10 and data 0x18 (Linux,
Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": __BOOT_CS and __BOOT_DS). The place that
this leaves free has the task state segment. PVH leaves the selectors open.

A CPU in long mode would read 16 bytes of a TSS descriptor, and find the code segment in the upper
half; but nobody loads TR from here, vCPUs are given it with its hidden part.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.registers import DescriptorTable, RegisterValue, Segment

TSS_SELECTOR: Final = 0x08
CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18

# Intel SDM volume 3A, 3.4.5 Segment Descriptors. All are present, of ring 0, based at 0, and
# marked accessed or busy: a CPU would have to write the mark otherwise.
CODE_64: Final = 0x00AF_9B00_0000_FFFF
CODE_32: Final = 0x00CF_9B00_0000_FFFF
DATA: Final = 0x00CF_9300_0000_FFFF
TSS_64: Final = 0x008F_8B00_0000_FFFF
TSS_32: Final = 0x0000_8B00_0000_0067
"""The limit is the size of a 32-bit TSS, less 1, as PVH wants it."""


def gdt(*, code: int, tss: int) -> bytes:
    """The table, for `layout.BOOT_GDT`. The IDT behind it is one entry of zeros."""
    return struct.pack("<4Q", 0, tss, code, DATA)


def segment_registers(*, code: int, tss: int) -> Mapping[str, RegisterValue]:
    """The segment registers and table registers of a vCPU that uses the table."""
    data = Segment.from_descriptor(DATA_SELECTOR, DATA)
    return {
        "cs": Segment.from_descriptor(CODE_SELECTOR, code),
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
        "tr": Segment.from_descriptor(TSS_SELECTOR, tss),
        "gdt": DescriptorTable(base=layout.BOOT_GDT, limit=4 * 8 - 1),
        "idt": DescriptorTable(base=layout.BOOT_IDT, limit=8 - 1),
    }
