"""Page numbers as the driver writes them, and the runs that they make. Pure."""

from __future__ import annotations

import array
import sys
from typing import Final

PAGE_BYTES: Final = 4096
"""Of the balloon, whatever the guest's and the host's pages are (5.5.6 Device Operation)."""
PFN_BYTES: Final = 4


def read_pfns(data: bytes) -> array.array[int]:
    """The page numbers of a chain's bytes; a number that is cut off counts for nothing."""
    pfns = array.array("I")
    pfns.frombytes(data[: len(data) - len(data) % PFN_BYTES])
    if sys.byteorder != "little":
        pfns.byteswap()
    return pfns


def runs(pfns: array.array[int]) -> list[tuple[int, int]]:
    """The same pages as first and count of each run, ascending, each page once.

    A guest gives pages one by one, and most often in a row: a call to the host for each run costs
    a fraction of one for each page.
    """
    found: list[tuple[int, int]] = []
    first = count = 0
    for pfn in sorted(set(pfns)):
        if count and pfn == first + count:
            count += 1
            continue
        if count:
            found.append((first, count))
        first, count = pfn, 1
    if count:
        found.append((first, count))
    return found
