"""The map of a guest's memory, as kernels take it in the zero page and over PVH. Pure.

Types are those of ACPI 6.5, 15.1 INT 15H, E820H. Only RAM and what lies among it is told:
what is in no entry is free for devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import attrs

from microvm.arch.x86_64 import layout

if TYPE_CHECKING:
    from microvm.memory import GuestRegion

RAM: Final = 1
RESERVED: Final = 2
MAX_ENTRIES: Final = 128
"""What the zero page has room for; the PVH map's place has more."""


@attrs.frozen
class E820Entry:
    """A run of guest physical addresses of one kind."""

    start: int
    length: int
    type: int


def memory_map(regions: Iterable[GuestRegion]) -> tuple[E820Entry, ...]:
    """The map, by ascending address.

    Args:
        regions: The guest's RAM, as `GuestMemory.regions` has it; the first begins at 0.

    Raises:
        ValueError: the first region does not reach beyond 1 MiB, or there are too many.
    """
    first, *others = regions
    if first.start or first.end <= layout.HIGH_MEMORY:
        raise ValueError("An x86_64 guest's first region of RAM is from 0 to beyond 1 MiB.")
    entries = (
        E820Entry(0, layout.EBDA, RAM),
        E820Entry(layout.EBDA, layout.EBDA_END - layout.EBDA, RESERVED),
        E820Entry(layout.ACPI_TABLES, layout.HIGH_MEMORY - layout.ACPI_TABLES, RESERVED),
        E820Entry(layout.HIGH_MEMORY, first.end - layout.HIGH_MEMORY, RAM),
        *(E820Entry(region.start, len(region.view), RAM) for region in others),
    )
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"A memory map has at most {MAX_ENTRIES} entries, not {len(entries)}.")
    return entries
