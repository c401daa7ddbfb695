"""From a descriptor chain to a block request (virtio 1.2, 5.2.6 Device Operation). Pure.

A request is a header of 16 readable bytes and its data, readable or writable, and then one
writable byte for the status: the chain's last, wherever the driver has cut its buffers (2.7.4.1
Message Framing). Its data are views of guest memory and are never copied here; the header is, and
the ranges of a DISCARD or WRITE_ZEROES, once each, and only the copies are used.

What a request asks for is judged here too, so that whoever executes one has nothing to check: it
lies within the disk, and is of a kind that this disk has. Numbers are Python integers, and no sum
of them wraps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from microvm.errors import QueueError
from microvm.virtio.chain import ChainReader
from microvm_devices.blk import limits
from microvm_devices.blk.layout import (
    F_DISCARD,
    F_WRITE_ZEROES,
    HEADER,
    HEADER_BYTES,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    SECTOR_BYTES,
    SEGMENT,
    SEGMENT_BYTES,
    SEGMENT_F_UNMAP,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm.virtio.chain import DescriptorChain

PENDING: Final = -1
"""The status of a request that nobody has decided yet."""

_TRANSFERS: Final = frozenset({T_IN, T_OUT})
_FILLED: Final = frozenset({T_IN, T_GET_ID})
"""Types whose data the device writes."""
_ALWAYS: Final = frozenset({T_FLUSH, T_GET_ID})
_FEATURE_OF: Final = {T_DISCARD: F_DISCARD, T_WRITE_ZEROES: F_WRITE_ZEROES}

_unpack = HEADER.unpack_from


# Not frozen: whoever executes a request puts the outcome into it, and attrs' frozen __init__ costs
# five times as much.
@attrs.define(eq=False)
class Request:
    """One request of the driver's."""

    head: int
    """The chain's, to hand it back."""
    type: int
    """VIRTIO_BLK_T_*, as the driver gave it."""
    offset: int
    """The first byte on the disk: sector * 512."""
    data: Sequence[memoryview]
    """What is to be written, or filled; without header and status."""
    length: int
    """Bytes of `data`."""
    status_at: memoryview
    """The byte for the status."""
    status: int = PENDING
    """VIRTIO_BLK_S_*, once it is decided."""
    written: int = 0
    """Bytes of `data` that hold what the driver asked for, from the first on."""
    unused: int = 0
    """Writable bytes before the status that this type of request has no use for."""
    segments: Sequence[Segment] = ()
    """The ranges of a DISCARD or WRITE_ZEROES that can be served; put here by `judge`."""

    @property
    def weight(self) -> int:
        """The bytes for which it counts under a rate limit.

        Zeros count like any other data that is written: where the file system has no better way,
        they are written. Space that is given back costs the host a change of its own tables.
        """
        if self.type == T_WRITE_ZEROES:
            return self.length + sum(segment.length for segment in self.segments)
        return self.length + len(self.segments) * limits.DISCARD_WEIGHT

    def finish(self) -> int:
        """Write the status, and say how many bytes of the chain were written.

        They are counted from the first writable one (2.7.8.1), so the status counts only if all
        that lies before it was written, and an error in the middle ends the count there.
        """
        self.status_at[0] = self.status
        if self.type not in _FILLED:
            return 0 if self.unused else 1
        return self.written + 1 if self.written == self.length else self.written


def parse(chain: DescriptorChain) -> Request:
    """Take a chain apart.

    Raises:
        QueueError: it has no whole header, or no byte for the status, so it can't be answered.
    """
    readable, writable = chain.readable, chain.writable
    if not writable:
        raise QueueError("A block request has no byte for its status.")
    if chain.readable_len < HEADER_BYTES:
        raise QueueError(f"A block request of {chain.readable_len} bytes has no whole header.")
    payload: Sequence[memoryview]
    if len(readable[0]) == HEADER_BYTES:
        # As every driver known to us cuts it.
        type_, _, sector = _unpack(readable[0])
        payload = readable[1:]
    else:
        reader = ChainReader(chain)
        type_, _, sector = _unpack(reader.read(HEADER_BYTES))
        payload = reader.views(reader.remaining)
    last = writable[-1]
    if type_ in _FILLED:
        if len(last) == 1:
            data, status_at = writable[:-1], last
        else:
            data, status_at = (*writable[:-1], last[:-1]), last[-1:]
        length = chain.writable_len - 1
        return Request(chain.head, type_, sector * SECTOR_BYTES, data, length, status_at)
    return Request(
        chain.head,
        type_,
        sector * SECTOR_BYTES,
        payload,
        chain.readable_len - HEADER_BYTES,
        last if len(last) == 1 else last[-1:],
        PENDING,
        0,
        chain.writable_len - 1,
    )


def judge(request: Request, *, size: int, read_only: bool, features: int) -> None:
    """Decide the status of a request that can't be served; any other stays `PENDING`.

    Args:
        request: As `parse` gave it.
        size: The disk's, in bytes.
        read_only: Whether nothing may be written, also by a driver that overlooked F_RO.
        features: What was negotiated.
    """
    type_ = request.type
    if type_ in _TRANSFERS:
        # 5.2.6.1: the driver must stay within the capacity, and data comes in whole sectors.
        length = request.length
        outside = length % SECTOR_BYTES or request.offset + length > size
        if outside or (read_only and type_ == T_OUT):
            request.status = S_IOERR
    elif type_ in _ALWAYS:
        # A flush is served whether or not F_FLUSH was accepted: nobody loses by it. Of a disk that
        # nobody writes all is stable.
        if read_only and type_ == T_FLUSH:
            request.status = S_OK
    elif type_ in _FEATURE_OF:
        count, rest = divmod(request.length, SEGMENT_BYTES)
        if read_only:
            request.status = S_IOERR
        elif not features & _FEATURE_OF[type_]:
            request.status = S_UNSUPP
        elif rest or not 0 < count <= limits.MAX_SEGMENTS:
            request.status = S_IOERR
        else:
            segments = read_segments(request, size=size)
            if isinstance(segments, int):
                request.status = segments
            else:
                request.segments = segments
    else:
        request.status = S_UNSUPP


@attrs.frozen
class Segment:
    """A range of the disk that is to be discarded or zeroed."""

    offset: int
    length: int
    unmap: bool
    """Whether the space may be given back to the host's file system."""


def read_segments(request: Request, *, size: int) -> list[Segment] | int:
    """Copy the ranges of a DISCARD or WRITE_ZEROES; there are no more of them than offered.

    Returns:
        All of them, each within the disk; or the status with which the request ends, if one of
        them can't be served (5.2.6.2).
    """
    table = b"".join(request.data)
    segments: list[Segment] = []
    for sector, count, flags in SEGMENT.iter_unpack(table):
        unmap = flags & SEGMENT_F_UNMAP
        if flags & ~SEGMENT_F_UNMAP or (unmap and request.type == T_DISCARD):
            return S_UNSUPP
        offset, length = sector * SECTOR_BYTES, count * SECTOR_BYTES
        if count > limits.MAX_SEGMENT_SECTORS or offset + length > size:
            return S_IOERR
        segments.append(Segment(offset, length, bool(unmap)))
    return segments
