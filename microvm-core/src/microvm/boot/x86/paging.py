"""The page tables of the 64-bit entry: the first GiB, each address mapped to itself.

Linux asks for the kernel (as far as its init_size), the zero page and the command line to be
mapped so (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"), and makes tables of its own
before it reaches for more.

Source: Intel SDM volume 3A, 4.5 4-Level Paging.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from microvm.arch.x86_64 import layout
from microvm.boot.reading import KernelFormatError

if TYPE_CHECKING:
    from microvm.boot.x86.placement import Span
    from microvm.memory import GuestMemory

MAPPED_BYTES: Final = 1 << 30

_PRESENT, _WRITABLE, _LARGE = 1 << 0, 1 << 1, 1 << 7
_ENTRIES = 512
_LARGE_PAGE_SHIFT = 21


def check_mapped(span: Span) -> None:
    """See that the page tables of the 64-bit entry reach that far.

    Raises:
        KernelFormatError: they don't.
    """
    if span.end > MAPPED_BYTES:
        raise KernelFormatError(
            f"it needs memory up to {span.end:#x}, and at its 64-bit entry only the first "
            f"{MAPPED_BYTES >> 20} MiB are mapped"
        )


def write_page_tables(memory: GuestMemory) -> None:
    """Write the three tables; `layout.PML4` is for CR3."""
    memory.write(layout.PML4, _table([layout.PDPT | _PRESENT | _WRITABLE]))
    memory.write(layout.PDPT, _table([layout.PAGE_DIRECTORY | _PRESENT | _WRITABLE]))
    pages = [i << _LARGE_PAGE_SHIFT | _PRESENT | _WRITABLE | _LARGE for i in range(_ENTRIES)]
    memory.write(layout.PAGE_DIRECTORY, _table(pages))


def _table(entries: list[int]) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries).ljust(layout.PAGE_BYTES, b"\0")
