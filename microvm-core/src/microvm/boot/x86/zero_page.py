"""The zero page (struct boot_params): what the 64-bit entry tells a kernel. Pure.

Sources: Linux, Documentation/arch/x86/zero-page.rst; Documentation/arch/x86/boot.rst, "Details of
Header Fields" and "64-bit Boot Protocol"; arch/x86/include/uapi/asm/bootparam.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from microvm.arch.x86_64 import layout
from microvm.boot.setup_header import (
    BOOT_FLAG,
    HEADER_LIMIT,
    HEADER_START,
    MAGIC,
    MAGIC_AT,
)
from microvm.boot.x86.e820 import MAX_ENTRIES, E820Entry

if TYPE_CHECKING:
    from microvm.boot.x86.placement import Span

ACPI_RSDP_ADDR: Final = 0x070
E820_ENTRIES: Final = 0x1E8
BOOT_FLAG_AT: Final = 0x1FE
TYPE_OF_LOADER: Final = 0x210
RAMDISK_IMAGE: Final = 0x218
RAMDISK_SIZE: Final = 0x21C
CMD_LINE_PTR: Final = 0x228
KERNEL_ALIGNMENT: Final = 0x230
E820_TABLE: Final = 0x2D0

LOADER_UNDEFINED: Final = 0xFF
"""A boot loader without a number of its own."""
ELF_ALIGNMENT: Final = 0x100_0000
"""For a kernel without a header to copy: CONFIG_PHYSICAL_START's default, as Firecracker has it."""


def zero_page(*, header: bytes, memory_map: Sequence[E820Entry], initrd: Span | None) -> bytes:
    """The page for `layout.ZERO_PAGE`; the command line is taken to lie at `layout.CMDLINE`.

    Args:
        header: A bzImage's `SetupHeader.raw`; empty for an ELF kernel.
        memory_map: At most 128 entries.
        initrd: Where it lies, below 4 GiB, or None.
    """
    assert len(header) <= HEADER_LIMIT - HEADER_START
    assert len(memory_map) <= MAX_ENTRIES
    page = bytearray(layout.PAGE_BYTES)
    if header:
        page[HEADER_START : HEADER_START + len(header)] = header
    else:
        struct.pack_into("<I", page, KERNEL_ALIGNMENT, ELF_ALIGNMENT)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, layout.ACPI_TABLES)
    struct.pack_into("<H", page, BOOT_FLAG_AT, BOOT_FLAG)
    page[MAGIC_AT : MAGIC_AT + len(MAGIC)] = MAGIC
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    if initrd is not None:
        struct.pack_into("<I", page, RAMDISK_IMAGE, initrd.start)
        struct.pack_into("<I", page, RAMDISK_SIZE, initrd.length)
    struct.pack_into("<I", page, CMD_LINE_PTR, layout.CMDLINE)
    page[E820_ENTRIES] = len(memory_map)
    for index, entry in enumerate(memory_map):
        at = E820_TABLE + index * 20
        struct.pack_into("<QQI", page, at, entry.start, entry.length, entry.type)
    return bytes(page)
