"""virtio-blk's numbers and structures (virtio 1.2, 5.2 Block Device)."""

from __future__ import annotations

import struct
from typing import Final

SECTOR_BYTES: Final = 512
"""The unit of every sector number, whatever `blk_size` says (5.2.4)."""

# --- features (5.2.3) --------------------------------------------------------------------------

F_SEG_MAX: Final = 1 << 2
F_RO: Final = 1 << 5
F_BLK_SIZE: Final = 1 << 6
F_FLUSH: Final = 1 << 9
F_TOPOLOGY: Final = 1 << 10
F_CONFIG_WCE: Final = 1 << 11
F_MQ: Final = 1 << 12
F_DISCARD: Final = 1 << 13
F_WRITE_ZEROES: Final = 1 << 14

# --- requests (5.2.6) --------------------------------------------------------------------------

T_IN: Final = 0
T_OUT: Final = 1
T_FLUSH: Final = 4
T_GET_ID: Final = 8
T_DISCARD: Final = 11
T_WRITE_ZEROES: Final = 13

S_OK: Final = 0
S_IOERR: Final = 1
S_UNSUPP: Final = 2

HEADER: Final = struct.Struct("<IIQ")
"""struct virtio_blk_req up to its data: type, reserved, sector."""
HEADER_BYTES: Final = HEADER.size

SEGMENT: Final = struct.Struct("<QII")
"""struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags."""
SEGMENT_BYTES: Final = SEGMENT.size
SEGMENT_F_UNMAP: Final = 1

ID_BYTES: Final = 20
"""VIRTIO_BLK_ID_BYTES: what GET_ID gives, without an end of string when it is full."""

# --- configuration space (5.2.4) ---------------------------------------------------------------

CONFIG: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3xIII")
"""struct virtio_blk_config: capacity, size_max, seg_max, geometry (cylinders, heads, sectors),
blk_size, topology (physical_block_exp, alignment_offset, min_io_size, opt_io_size), writeback,
num_queues, max_discard_sectors, max_discard_seg, discard_sector_alignment,
max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap, and three of secure erase.
"""
WRITEBACK_OFFSET: Final = 32
"""The one field that a driver writes."""
