"""Descriptor chains: the walk through the table, the result, and reading and writing it.

A chain is walked once. Each descriptor is unpacked into integers of our own, and only those are
used: the guest may rewrite the table meanwhile, and gains nothing (it would be offering
another chain). What the buffers hold stays shared; `ChainReader.read` is the copy to parse.

Rules and where they stand (virtio 1.2): at most as many descriptors as the queue has, no loops,
less than 2^32 bytes in all (2.7.5.2); device-writable buffers come last (2.7.4.2); an indirect
table has 1 to queue-size whole descriptors, none of which is indirect, and its descriptor is the
chain's last (2.7.5.3.1). Devices must ignore the WRITE flag of the descriptor that refers to a
table (2.7.5.3.2), and make no assumption on where one message is cut into buffers (2.7.4.1).
A descriptor of length zero holds nothing and is skipped.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import attrs

from microvm.errors import GuestError, QueueError

if TYPE_CHECKING:
    from microvm.memory import GuestMemory

DESCRIPTOR: Final = struct.Struct("<QIHH")
"""addr, len, flags, next (2.7.5 The Virtqueue Descriptor Table)."""
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4

MAX_CHAIN_BYTES: Final = (1 << 32) - 1

_unpack_one = DESCRIPTOR.unpack_from
_unpack_all = DESCRIPTOR.iter_unpack


# Not frozen: attrs' frozen __init__ costs five times as much, once for each packet.
@attrs.define(eq=False)
class DescriptorChain:
    """The buffers of one request, in the guest's memory."""

    head: int
    """The descriptor index by which the chain is handed back."""
    readable: tuple[memoryview, ...]
    """What the driver wrote for the device, never empty views."""
    writable: tuple[memoryview, ...]
    """Where the device writes its answer, never empty views."""
    readable_len: int
    """Bytes of all readable buffers."""
    writable_len: int
    """Bytes of all writable buffers."""


def walk_chain(
    memory: GuestMemory, table: memoryview, head: int, size: int, *, indirect: bool
) -> DescriptorChain:
    """Follow the chain that begins at `head`.

    Args:
        memory: Where the buffers are.
        table: The queue's descriptor table, `size` descriptors.
        head: Index below `size`.
        size: The queue size, which bounds the walk.
        indirect: Whether RING_INDIRECT_DESC was negotiated.

    Raises:
        QueueError: the chain breaks a rule.
    """
    address, length, flags, _ = _unpack_one(table, head << 4)
    if length and not flags & (DESC_F_NEXT | DESC_F_INDIRECT):
        # One buffer, as a network card's are: half the time of a walk.
        buffer = memory.whole(address, length)
        if buffer is not None:
            if flags & DESC_F_WRITE:
                return DescriptorChain(head, (), (buffer,), 0, length)
            return DescriptorChain(head, (buffer,), (), length, 0)
    readable: list[memoryview] = []
    writable: list[memoryview] = []
    readable_len = writable_len = 0
    index, count, hops_left = head, size, size
    writable_seen = in_indirect = False
    # The region of the buffer before: most often of the next one too.
    start, end, ram = 0, 0, memoryview(b"")
    more = True
    try:
        while more:
            # Drivers use neighbours where they can: read on until one refers elsewhere.
            for address, length, flags, following in _unpack_all(table[index << 4 :]):
                if flags & DESC_F_INDIRECT:
                    if not indirect:
                        raise QueueError("RING_INDIRECT_DESC was not negotiated.")
                    if in_indirect:
                        raise QueueError("An indirect table refers to another.")
                    if flags & DESC_F_NEXT:
                        raise QueueError("A descriptor has both INDIRECT and NEXT.")
                    if not length or length & 15 or length >> 4 > size:
                        raise QueueError(
                            f"An indirect table of {length} bytes is not 1 to {size} descriptors."
                        )
                    table = memory.slice(address, length)
                    index, count = 0, length >> 4
                    in_indirect = True
                    break
                if flags & DESC_F_WRITE:
                    writable_seen = True
                    writable_len += length
                    buffers = writable
                else:
                    if writable_seen:
                        raise QueueError("A device-readable buffer follows a device-writable one.")
                    readable_len += length
                    buffers = readable
                if length:
                    stop = address + length
                    if address < start or address >= end:
                        start, end, ram = memory.region_at(address, length)
                    if stop <= end:
                        buffers.append(ram[address - start : stop - start])
                    else:
                        # It may run from one region into its neighbour: it is RAM all the same.
                        buffers.extend(memory.slices(address, length))
                if not flags & DESC_F_NEXT:
                    more = False
                    break
                hops_left -= 1
                if not hops_left:
                    raise QueueError(f"It loops, or has more than {size} descriptors.")
                if following >= count:
                    raise QueueError(f"It goes on at descriptor {following} of {count}.")
                index += 1
                if following != index:
                    index = following
                    break
    except GuestError as error:
        where = f"indirect descriptor {index}" if in_indirect else f"descriptor {index}"
        raise QueueError(f"Chain {head}, {where}: {error.message}") from error
    if readable_len + writable_len > MAX_CHAIN_BYTES:
        raise QueueError(f"Chain {head} holds 2^32 bytes or more.")
    return DescriptorChain(head, tuple(readable), tuple(writable), readable_len, writable_len)


class ChainReader:
    """Reads a chain's device-readable bytes in order, wherever they are cut into buffers."""

    __slots__ = ("_buffers", "_index", "_offset", "remaining")

    def __init__(self, chain: DescriptorChain) -> None:
        self._buffers = chain.readable
        self._index = 0
        self._offset = 0
        self.remaining = chain.readable_len
        """Bytes not read yet."""

    def read(self, length: int) -> bytes:
        """Copy the next `length` bytes.

        Raises:
            QueueError: there are fewer.
        """
        if 0 < length <= self.remaining:
            offset = self._offset
            buffer = self._buffers[self._index]
            if offset + length < len(buffer):
                self._offset = offset + length
                self.remaining -= length
                return bytes(buffer[offset : offset + length])
        return b"".join(self.views(length))

    def read_into(self, target: bytearray | memoryview) -> None:
        """Fill `target` with the next bytes.

        Raises:
            QueueError: there are fewer.
        """
        done = 0
        for view in self.views(len(target)):
            target[done : done + len(view)] = view
            done += len(view)

    def views(self, length: int) -> list[memoryview]:
        """The next `length` bytes where they lie, shared with the guest, for `sendmsg` and such.

        Raises:
            QueueError: there are fewer.
        """
        if not 0 <= length <= self.remaining:
            raise QueueError(
                f"The driver's message ends {length - self.remaining} bytes before its due."
            )
        views, self._index, self._offset = _cut(self._buffers, self._index, self._offset, length)
        self.remaining -= length
        return views


class ChainWriter:
    """Writes a chain's device-writable bytes in order, and counts them for `add_used`."""

    __slots__ = ("_buffers", "_index", "_offset", "remaining", "written")

    def __init__(self, chain: DescriptorChain) -> None:
        self._buffers = chain.writable
        self._index = 0
        self._offset = 0
        self.remaining = chain.writable_len
        """Bytes that still fit."""
        self.written = 0
        """Bytes written from the start on: the length to give to `VirtQueue.add_used`."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write as much of `data` as fits, and return how much that was."""
        length = min(len(data), self.remaining)
        views, self._index, self._offset = _cut(self._buffers, self._index, self._offset, length)
        done = 0
        for view in views:
            end = done + len(view)
            view[:] = data[done:end]
            done = end
        self.remaining -= length
        self.written += length
        return length

    def views(self, length: int) -> list[memoryview]:
        """Where the next bytes go, at most `length`; write there, then `advance`."""
        return _cut(self._buffers, self._index, self._offset, min(length, self.remaining))[0]

    def advance(self, length: int) -> None:
        """Count `length` bytes as written, which were written through `views`.

        Raises:
            ValueError: so many do not fit.
        """
        if not 0 <= length <= self.remaining:
            raise ValueError(f"{length} bytes written where {self.remaining} fit.")
        _, self._index, self._offset = _cut(self._buffers, self._index, self._offset, length)
        self.remaining -= length
        self.written += length


def _cut(
    buffers: tuple[memoryview, ...], index: int, offset: int, length: int
) -> tuple[list[memoryview], int, int]:
    """The views of `length` bytes from a position on, and the position behind them.

    The buffers hold that many. A position never stands at the end of a buffer but the last.
    """
    views: list[memoryview] = []
    while length:
        buffer = buffers[index]
        view = buffer[offset : offset + length] if offset or length < len(buffer) else buffer
        views.append(view)
        length -= len(view)
        offset += len(view)
        if offset == len(buffer):
            index, offset = index + 1, 0
    return views, index, offset
