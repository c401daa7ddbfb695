"""Loading the protected-mode part of a bzImage, for its 64-bit entry.

Source: Linux, Documentation/arch/x86/boot.rst, "Details of Header Fields" and "64-bit Boot
Protocol".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from microvm.boot.reading import KernelFormatError
from microvm.boot.x86.paging import check_mapped
from microvm.boot.x86.placement import Span, check_kernel_span

if TYPE_CHECKING:
    from microvm.boot.files import OpenBootFile
    from microvm.boot.setup_header import SetupHeader
    from microvm.memory import GuestMemory

ENTRY_64: Final = 0x200
"""Offset of the 64-bit entry in the protected-mode part."""
MIN_HEADER_END: Final = 0x264
"""Behind `init_size`, the last field that we read; all are in protocol 2.10."""


def place_bzimage(header: SetupHeader, *, ram_end: int) -> Span:
    """What the kernel takes from where it is loaded, at its preferred address. Pure.

    A kernel loaded below that address would move itself up to it, relocatable or not; and since
    there is a 64-bit entry (2.12), there is that field (2.10).

    Raises:
        KernelFormatError: it has no 64-bit entry, or contradicts itself.
        DoesNotFit: the guest's RAM ends before.
    """
    if not header.has_64bit_entry:
        raise KernelFormatError("it has no 64-bit entry point, which 64-bit Linux has since 3.8")
    if header.end < MIN_HEADER_END:
        raise KernelFormatError(f"its header ends at {header.end:#x}, before its last fields")
    payload_offset, payload_length = header.payload
    if payload_offset + payload_length > header.protected_bytes:
        raise KernelFormatError(
            f"its payload ends at {payload_offset + payload_length:#x}, behind the "
            f"{header.protected_bytes:#x} bytes of its protected-mode part"
        )
    if header.protected_bytes <= ENTRY_64:
        raise KernelFormatError("its protected-mode part ends before its 64-bit entry point")
    alignment, start = header.kernel_alignment, header.pref_address
    if not alignment or alignment & (alignment - 1):
        raise KernelFormatError(f"its alignment {alignment:#x} is no power of two")
    if start % alignment:
        raise KernelFormatError(
            f"its preferred address {start:#x} is not aligned to {alignment:#x}, as it asks for"
        )
    span = Span(start, start + max(header.protected_bytes, header.init_size))
    check_kernel_span(span, ram_end)
    check_mapped(span)
    return span


def read_bzimage(file: OpenBootFile, header: SetupHeader, span: Span, memory: GuestMemory) -> None:
    """Read the protected-mode part to the place that `place_bzimage` has found."""
    file.read_into(header.setup_bytes, memory.slice(span.start, header.protected_bytes))
