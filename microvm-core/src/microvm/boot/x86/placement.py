"""Which parts of guest memory are whose while a machine boots. Pure.

Below 1 MiB everything is ours: the boot structures at their fixed places. A kernel lies at or
above 1 MiB, an initrd beside it; both in the first region of RAM, below the device hole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from microvm.arch.x86_64 import layout
from microvm.boot.reading import DoesNotFit, KernelFormatError

if TYPE_CHECKING:
    from microvm.memory import GuestMemory

MIB: Final = 1 << 20


@attrs.frozen
class Span:
    """A run of guest physical addresses."""

    start: int
    end: int
    """The first address behind it."""

    @property
    def length(self) -> int:
        """In bytes."""
        return self.end - self.start

    def overlaps(self, other: Span) -> bool:
        """Whether some address is in both."""
        return self.start < other.end and other.start < self.end


def _at(start: int, length: int) -> Span:
    return Span(start, start + length)


BOOT_STRUCTURES: Final = {
    "GDT": _at(layout.BOOT_GDT, 4 * 8),
    "IDT": _at(layout.BOOT_IDT, 8),
    "hvm_start_info": _at(layout.PVH_START_INFO, 56),
    "PVH module list": _at(layout.PVH_MODULES, 32),
    "PVH memory map": Span(layout.PVH_MEMMAP, layout.ZERO_PAGE),
    "zero page": _at(layout.ZERO_PAGE, layout.PAGE_BYTES),
    "stack": Span(layout.ZERO_PAGE + layout.PAGE_BYTES, layout.BOOT_STACK),
    "PML4": _at(layout.PML4, layout.PAGE_BYTES),
    "PDPT": _at(layout.PDPT, layout.PAGE_BYTES),
    "page directory": _at(layout.PAGE_DIRECTORY, layout.PAGE_BYTES),
    "command line": _at(layout.CMDLINE, layout.CMDLINE_BYTES),
    "MP table": Span(layout.EBDA, layout.EBDA_END),
    "ACPI tables": Span(layout.ACPI_TABLES, layout.HIGH_MEMORY),
}
"""Each of them, as large as it can be; what a kernel finds there is read before it is reused."""


def low_ram_end(memory: GuestMemory) -> int:
    """Where the RAM below the device hole ends.

    Raises:
        ValueError: there is no RAM at address 0.
    """
    first = memory.regions[0]
    if first.start:
        raise ValueError(f"An x86_64 guest's RAM begins at 0, not at {first.start:#x}.")
    return min(first.end, layout.HOLE_START)


def check_kernel_span(span: Span, ram_end: int) -> None:
    """See that a kernel can lie there.

    Raises:
        KernelFormatError: it wants memory that no guest of ours can give it.
        DoesNotFit: a guest with more memory could.
    """
    if span.start < layout.HIGH_MEMORY:
        raise KernelFormatError(
            f"it is to be loaded at {span.start:#x}, below 1 MiB, where the boot structures are"
        )
    if span.end > layout.HOLE_START:
        raise KernelFormatError(
            f"it needs memory up to {span.end:#x}, and from {layout.HOLE_START:#x} on there is none"
        )
    if span.end > ram_end:
        raise DoesNotFit(
            f"it needs memory up to {-(-span.end // MIB)} MiB and does not fit into "
            f"{ram_end // MIB} MiB"
        )
