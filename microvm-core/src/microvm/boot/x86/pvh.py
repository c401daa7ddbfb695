"""The start info of a PVH entry: what the 32-bit entry tells a kernel. Pure.

Source: Xen, xen/include/public/arch-x86/hvm/start_info.h, version 1; docs/misc/pvh.pandoc.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from microvm.arch.x86_64 import layout

if TYPE_CHECKING:
    from microvm.boot.x86.e820 import E820Entry
    from microvm.boot.x86.placement import Span
    from microvm.memory import GuestMemory

MAGIC: Final = 0x336E_C578
"""``xEn3`` with the high bit of its E set."""
VERSION: Final = 1
"""The first with a memory map."""


def start_info(*, modules: int, memory_map_entries: int) -> bytes:
    """The hvm_start_info itself, for `layout.PVH_START_INFO`."""
    return struct.pack(
        "<IIII4QII",
        MAGIC,
        VERSION,
        0,  # flags: SIF_xxx of a Xen domain, none
        modules,
        layout.PVH_MODULES if modules else 0,
        layout.CMDLINE,
        layout.ACPI_TABLES,
        layout.PVH_MEMMAP,
        memory_map_entries,
        0,
    )


def module(span: Span) -> bytes:
    """An hvm_modlist_entry: address, size, no command line of its own."""
    return struct.pack("<4Q", span.start, span.length, 0, 0)


def memory_map_table(entries: Sequence[E820Entry]) -> bytes:
    """An hvm_memmap_table_entry for each; the types are those of the E820 map."""
    return b"".join(struct.pack("<QQII", e.start, e.length, e.type, 0) for e in entries)


def write_start_info(
    memory: GuestMemory, *, memory_map: Sequence[E820Entry], initrd: Span | None
) -> None:
    """Write the start info and what it leads to, but for the command line at `layout.CMDLINE`.

    The first module is the initrd: Linux takes no other.
    """
    modules = [] if initrd is None else [module(initrd)]
    info = start_info(modules=len(modules), memory_map_entries=len(memory_map))
    memory.write(layout.PVH_START_INFO, info)
    memory.write(layout.PVH_MODULES, b"".join(modules))
    memory.write(layout.PVH_MEMMAP, memory_map_table(memory_map))
