"""What a guest says of its memory (virtio 1.2, 5.5.6.3 Memory Statistics). Pure.

They are the guest's claims: nothing follows from them on the host. A value may be anything of 64
bits; Linux says -1 for what it does not know, which is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

STAT: Final = struct.Struct("<HQ")
"""struct virtio_balloon_stat, packed: tag, val."""
MAX_STATS: Final = 64
"""Of one buffer; there are 16 tags. The rest is not looked at."""
UNKNOWN: Final = (1 << 64) - 1

NAMES: Final = (
    "swapped_in_bytes",
    "swapped_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "disk_cache_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "allocation_stalls",
    "async_scanned_pages",
    "direct_scanned_pages",
    "async_reclaimed_pages",
    "direct_reclaimed_pages",
)
"""By tag, VIRTIO_BALLOON_S_*: 0 to 9 as in 5.5.6.4, the others as Linux has them since 6.12."""


def parse_statistics(data: bytes) -> Mapping[str, int]:
    """Name to value, of what is known; a tag that comes twice counts as its last."""
    length = min(len(data), MAX_STATS * STAT.size)
    pairs = STAT.iter_unpack(data[: length - length % STAT.size])
    return {NAMES[tag]: value for tag, value in pairs if tag < len(NAMES) and value != UNKNOWN}
