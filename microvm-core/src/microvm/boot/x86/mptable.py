"""The MP table: CPUs and interrupts for a kernel that knows no ACPI. Pure.

Source: Intel MultiProcessor Specification 1.4, chapter 4 MP Configuration Table. The floating
pointer lies at the start of the extended BIOS data area, one of the three places where it is
looked for, and the table behind it. The virtio devices are not in it: such a kernel is told of
them on its command line.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from microvm.arch.x86_64 import layout
from microvm.boot.x86.checksum import with_checksum

if TYPE_CHECKING:
    from microvm.arch.x86_64.board import BoardDescription

SPEC_REVISION: Final = 4
"""Of version 1.4."""
POINTER_BYTES: Final = 16

_PROCESSOR, _BUS, _IO_APIC, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
_INT, _NMI, _EXT_INT = 0, 1, 3
_ENABLED, _BOOT_PROCESSOR = 1, 2
_ISA_BUS = 0
_EVERY_LOCAL_APIC = 0xFF
_APIC_VERSION = 0x14
_CPU_SIGNATURE = 0x600
_CPU_FEATURES = 0x201
"""FPU and APIC on chip. Kernels ask CPUID."""

MAX_PROCESSORS: Final = (layout.EBDA_END - layout.EBDA - 284) // 20
"""37: all the other entries take 284 bytes. A kernel without ACPI sees no more CPUs than that."""


def mp_table(board: BoardDescription) -> bytes:
    """Floating pointer and table, for `layout.EBDA`.

    Lists the first `MAX_PROCESSORS` CPUs of a machine that has more.
    """
    processors = min(board.vcpu_count, MAX_PROCESSORS)
    io_apic = board.io_apic_id
    entries = [
        *(_processor(apic_id) for apic_id in range(processors)),
        struct.pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "),
        struct.pack("<BBBBI", _IO_APIC, io_apic, _APIC_VERSION, _ENABLED, layout.IO_APIC),
        # Each pin is fed by the interrupt of its number, edge-triggered and active high as the
        # ISA bus has them (flags 0: "conforms to the bus").
        *(
            struct.pack("<BBHBBBB", _IO_INTERRUPT, _INT, 0, _ISA_BUS, pin, io_apic, pin)
            for pin in range(layout.IO_APIC_PINS)
        ),
        struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, _EXT_INT, 0, _ISA_BUS, 0, 0, 0),
        struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, _NMI, 0, _ISA_BUS, 0, _EVERY_LOCAL_APIC, 1),
    ]
    pointer = struct.pack(
        "<4sIBBB5s", b"_MP_", layout.EBDA + POINTER_BYTES, 1, SPEC_REVISION, 0, b""
    )
    table = _header(entries) + b"".join(entries)
    return with_checksum(pointer, 10) + with_checksum(table, 7)


def _processor(apic_id: int) -> bytes:
    flags = _ENABLED if apic_id else _ENABLED | _BOOT_PROCESSOR
    return struct.pack(
        "<BBBBII8x", _PROCESSOR, apic_id, _APIC_VERSION, flags, _CPU_SIGNATURE, _CPU_FEATURES
    )


def _header(entries: list[bytes]) -> bytes:
    length = 44 + sum(len(entry) for entry in entries)
    return struct.pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP",
        length,
        SPEC_REVISION,
        0,  # checksum, to be filled in
        b"MICROVM ",
        b"MICROVM     ",
        0,  # no OEM table
        0,
        len(entries),
        layout.LOCAL_APIC,
        0,  # no extended table
        0,
        0,
    )
