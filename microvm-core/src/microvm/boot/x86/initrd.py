"""Where the initrd lies in guest memory, and reading it there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.arch.x86_64 import layout
from microvm.boot.reading import DoesNotFit
from microvm.boot.x86.placement import MIB, Span

if TYPE_CHECKING:
    from microvm.boot.files import OpenBootFile
    from microvm.memory import GuestMemory


def place_initrd(size: int, *, kernel: Span, ram_end: int, highest: int) -> Span:
    """A place for an initrd: as high as can be, beginning with a page. Pure.

    High because a kernel that unpacks itself, or takes memory before it has read its map, takes
    what is near it. Below the kernel only if there is no room above.

    Args:
        size: In bytes, not 0.
        kernel: What the kernel takes; above 1 MiB.
        ram_end: Where the RAM below the device hole ends.
        highest: The highest address that its last byte may have, by the kernel's word.

    Raises:
        DoesNotFit: there is no such place.
    """
    top = min(ram_end, layout.HOLE_START, highest + 1)
    for ceiling, floor in ((top, kernel.end), (min(top, kernel.start), layout.HIGH_MEMORY)):
        start = (ceiling - size) // layout.PAGE_BYTES * layout.PAGE_BYTES
        if start >= floor:
            return Span(start, start + size)
    raise DoesNotFit(
        f"its {-(-size // MIB)} MiB don't fit beside the kernel, which takes {kernel.start:#x} to "
        f"{kernel.end:#x}, into the {top // MIB} MiB where it may lie"
    )


def read_initrd(file: OpenBootFile, span: Span, memory: GuestMemory) -> None:
    """Read the initrd to the place that `place_initrd` has found."""
    file.read_into(0, memory.slice(span.start, span.length))
