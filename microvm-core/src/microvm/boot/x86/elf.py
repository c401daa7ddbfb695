"""Loading an ELF kernel's segments, for either of its entries."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from microvm.boot.reading import KernelFormatError
from microvm.boot.x86.placement import Span, check_kernel_span

if TYPE_CHECKING:
    from microvm.boot.elf import ElfKernel
    from microvm.boot.files import OpenBootFile
    from microvm.memory import GuestMemory


def place_elf(kernel: ElfKernel, *, ram_end: int) -> Span:
    """From its first to its last segment, where their physical addresses put them. Pure.

    Raises:
        KernelFormatError: they overlap each other, or lie where no kernel can be.
        DoesNotFit: the guest's RAM ends before.
    """
    segments = sorted(kernel.segments, key=lambda segment: segment.paddr)
    for left, right in itertools.pairwise(segments):
        if left.end > right.paddr:
            raise KernelFormatError(f"two of its segments overlap at {right.paddr:#x}")
    # Without overlaps the last to begin is the last to end.
    span = Span(segments[0].paddr, segments[-1].end)
    check_kernel_span(span, ram_end)
    return span


def read_elf(file: OpenBootFile, kernel: ElfKernel, memory: GuestMemory) -> None:
    """Read the segments to their places, once `place_elf` has approved of them.

    What a segment has in memory and not in the file stays as it is: zeros, in fresh memory.
    """
    for segment in kernel.segments:
        file.read_into(segment.offset, memory.slice(segment.paddr, segment.filesz))
