"""Frames and their headers (virtio 1.2, 5.1.6 Device Operation). Pure.

What a driver sends is looked at in a copy of its first `HEAD_BYTES`: the virtio header and the
Ethernet header. The copy is what is sent on, so that nothing which was checked can change
afterwards; the rest of the frame is sent from where it lies, and decides nothing.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final

from microvm.abc import Offload

HEADER: Final = struct.Struct("<BBHHHHH")
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset,
num_buffers. With VERSION_1 it always has all of them (5.1.6.1)."""
HEADER_BYTES: Final = HEADER.size
NUM_BUFFERS_AT: Final = 10

F_NEEDS_CSUM: Final = 1
F_DATA_VALID: Final = 2
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_ECN: Final = 0x80

ETHERNET_BYTES: Final = 14
VLAN_BYTES: Final = 4
MAC_BYTES: Final = 6
HEAD_BYTES: Final = HEADER_BYTES + ETHERNET_BYTES
_SOURCE: Final = slice(HEADER_BYTES + MAC_BYTES, HEADER_BYTES + 2 * MAC_BYTES)

MAX_FRAME_BYTES: Final = 65550
"""The longest frame there is, one to be cut into segments: 65536 and the Ethernet header
(5.1.6.3.1 Driver Requirements: Setting Up Receive Buffers)."""

PLAIN: Final = bytes(HEADER_BYTES)
"""The header of a frame with nothing left to do."""

_TSO: Final = {GSO_TCPV4: Offload.TSO4, GSO_TCPV6: Offload.TSO6}


def _gso_types(offloads: Offload) -> frozenset[int]:
    """How frames may be cut. A flag enum's own ``in`` takes as long as all else of a header."""
    return frozenset(gso_type for gso_type, offload in _TSO.items() if offload in offloads)


MAX_PIECES: Final = 256
"""A frame in more pieces is copied together: one system call takes 1024."""


class Fault(enum.Enum):
    """Why a frame that the driver sent goes nowhere."""

    SHORT = "it has no whole header"
    LONG = "it is longer than its MTU, or than any frame"
    OFFLOAD = "it leaves to the device what was not negotiated"
    CHECKSUM = "its checksum would lie outside of it"
    SEGMENTS = "it does not say how to cut it"
    SPOOFED = "its source address is not the device's"


class TransmitRules:
    """What is let through of what a driver sends.

    Args:
        offloads: What it may leave undone.
        mtu: The longest payload of a frame that is not to be cut.
        only_from: The one source address allowed, if that is to be checked.
    """

    __slots__ = ("_csum", "_cuts", "_longest", "_only_from")

    def __init__(self, *, offloads: Offload, mtu: int, only_from: bytes | None = None) -> None:
        self._csum = Offload.CSUM in offloads
        self._cuts = _gso_types(offloads)
        self._longest = ETHERNET_BYTES + VLAN_BYTES + mtu
        self._only_from = only_from

    def head(self, head: bytes, length: int) -> bytes | Fault:
        """What to send in place of a frame's first `HEAD_BYTES`, or why not to.

        Args:
            head: A copy of them.
            length: Of the frame, without the virtio header; `ETHERNET_BYTES` or more.
        """
        if self._only_from is not None and head[_SOURCE] != self._only_from:
            return Fault.SPOOFED
        flags, gso_type = head[0], head[1]
        if not flags & F_NEEDS_CSUM and gso_type == GSO_NONE:
            if length > self._longest:
                return Fault.LONG
            return PLAIN + head[HEADER_BYTES:]
        header = self._offloaded(head, length)
        return header if isinstance(header, Fault) else header + head[HEADER_BYTES:]

    def _offloaded(self, head: bytes, length: int) -> bytes | Fault:
        """The header of a frame with work left in it (5.1.6.2.2), made anew.

        Flags that we don't know are ignored, and hdr_len, which is a hint that may lie, is not
        passed on.
        """
        flags, gso_type, _, gso_size, csum_start, csum_offset, _ = HEADER.unpack_from(head)
        if gso_type != GSO_NONE:
            if gso_type not in self._cuts:
                return Fault.OFFLOAD
            if not gso_size or not flags & F_NEEDS_CSUM:
                return Fault.SEGMENTS
            if length > MAX_FRAME_BYTES:
                return Fault.LONG
        elif length > self._longest:
            return Fault.LONG
        if not self._csum:
            return Fault.OFFLOAD
        if csum_start < ETHERNET_BYTES or csum_start + csum_offset + 2 > length:
            return Fault.CHECKSUM
        return HEADER.pack(F_NEEDS_CSUM, gso_type, 0, gso_size, csum_start, csum_offset, 0)


class ReceiveRules:
    """What of a link's headers the driver can be given.

    Args:
        offloads: What may be left to the driver.
    """

    __slots__ = ("_csum", "_cuts")

    def __init__(self, offloads: Offload) -> None:
        self._csum = Offload.CSUM in offloads
        self._cuts = _gso_types(offloads)

    def header(self, header: bytes) -> bytes | None:
        """What the driver gets in place of a link's header, num_buffers aside; None to drop.

        5.1.6.4.1 Device Requirements: Processing of Incoming Packets. A link that was told what
        is accepted may have had frames waiting from before.
        """
        flags, gso_type = header[0], header[1]
        if gso_type != GSO_NONE and gso_type not in self._cuts:
            return None
        if not self._csum:
            if flags & F_NEEDS_CSUM:
                return None
            return b"\0" + header[1:NUM_BUFFERS_AT]
        return bytes((flags & (F_NEEDS_CSUM | F_DATA_VALID),)) + header[1:NUM_BUFFERS_AT]


def skip(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """The views without their first `count` bytes, none of them empty."""
    for index, view in enumerate(views):
        size = len(view)
        if count < size:
            rest = list(views[index:])
            if count:
                rest[0] = view[count:]
            return rest
        count -= size
    return []


def scatter(views: Sequence[memoryview], data: bytes | memoryview) -> None:
    """Copy `data` into the views, as far as they go."""
    done, end = 0, len(data)
    for view in views:
        piece = data[done : done + len(view)]
        view[: len(piece)] = piece
        done += len(piece)
        if done == end:
            return


def gather(views: Sequence[memoryview], length: int) -> bytes:
    """A copy of the first `length` bytes of the views, which hold as many."""
    first = views[0]
    if len(first) >= length:
        return bytes(first[:length])
    data = bytearray()
    for view in views:
        data += view[: length - len(data)]
        if len(data) == length:
            break
    return bytes(data)
