"""struct virtio_blk_config (virtio 1.2, 5.2.4 Device configuration layout). Pure."""

from __future__ import annotations

from typing import Final

from microvm_devices.blk import limits
from microvm_devices.blk.layout import CONFIG, SECTOR_BYTES

_BLOCK_EXP: Final = 3
"""2^3 sectors: what the page caches and file systems of hosts deal in. Drivers then align to it."""
_BLOCK_SECTORS: Final = 1 << _BLOCK_EXP


def config_space(*, size: int, queues: int, read_only: bool) -> bytes:
    """The space of a disk of `size` bytes; `writeback` is 0 in it, for the device to fill in.

    Fields whose feature `BlkDevice.features` does not offer are 0.
    """
    written = (
        limits.MAX_SEGMENT_SECTORS,
        limits.MAX_SEGMENTS,
        _BLOCK_SECTORS,  # discard_sector_alignment
        limits.MAX_SEGMENT_SECTORS,
        limits.MAX_SEGMENTS,
        1,  # write_zeroes_may_unmap
    )
    return CONFIG.pack(
        size // SECTOR_BYTES,
        0,  # size_max: a buffer may be of any size
        limits.SEG_MAX,
        *(0, 0, 0),  # no geometry: nothing turns
        SECTOR_BYTES,  # blk_size: the unit in which a driver must write
        _BLOCK_EXP,
        0,  # alignment_offset
        _BLOCK_SECTORS,  # min_io_size
        0,  # opt_io_size: no preference
        0,  # writeback
        queues if queues > 1 else 0,
        *((0,) * len(written) if read_only else written),
        *(0, 0, 0),  # no secure erase
    )
