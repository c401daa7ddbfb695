"""The bounds of the block device, and why they are what they are.

A guest chooses sizes and numbers; these bound what one turn of a queue costs its host. No request's
data is ever copied, so memory is bounded by the views of 64 chains, whatever they point at.
"""

from __future__ import annotations

from typing import Final

QUEUE_SIZE: Final = 256
SEG_MAX: Final = QUEUE_SIZE - 2
"""Buffers of data in one request: a descriptor each for header and status is left (5.2.5)."""
TURN_BYTES: Final = 2 * 1024 * 1024
"""What a queue serves on the trio thread before other tasks are let run, and what one hop to the
thread carries: a copy of so much takes 0.4 ms. The last request may go beyond it."""
REQUEST_COST: Final = 32 * 1024
"""What each request counts for beside its bytes, so that a turn is of 64 requests at most."""
INLINE_BYTES: Final = 1024 * 1024
"""A larger read goes to the thread, also from the page cache: other tasks run during the copy."""
PIECE_BYTES: Final = 32 * 1024 * 1024
"""What one system call moves at most. Between two, it is seen whether the run is to end."""
ZEROES_PIECE_BYTES: Final = 64 * 1024 * 1024
"""The same where zeros are written or space is given back."""
DISCARD_WEIGHT: Final = 4096
"""Bytes that a range counts for under a rate limit when it is discarded, however large it is."""
MAX_SEGMENTS: Final = 16
"""Segments of one DISCARD or WRITE_ZEROES."""
MAX_SEGMENT_SECTORS: Final = 1 << 21
"""Sectors of one segment: 1 GiB. A request of 16 takes seconds where zeros must be written."""
