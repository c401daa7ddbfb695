"""The packets of virtio-vsock (virtio 1.2, 5.10.6 Device Operation): header, numbers, cutting.

A header is read from guest memory once, into integers of our own, and only those are used: the
guest may rewrite its buffer while we look at it. `HEADER.unpack_from` loads each field one time.

The path that every packet takes works on the bare tuple that `read_header` returns, in the order
of `VsockPacket`'s fields; the named form costs 0.3 us more and is for everyone else.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

VSOCK_CID_HOST: Final = 2
"""The well-known CID of the host (5.10.4 Device configuration layout)."""

VIRTIO_VSOCK_TYPE_STREAM: Final = 1

RX_QUEUE: Final = 0
TX_QUEUE: Final = 1
EVENT_QUEUE: Final = 2
"""5.10.2 Virtqueues; named as the driver sees them, so that the device fills RX."""

VIRTIO_VSOCK_F_STREAM: Final = 1 << 0
"""5.10.3 Feature bits."""

MAX_PACKET_BYTES: Final = 64 * 1024
"""Most payload in one packet. The standard sets no bound; Linux has never sent more
(VIRTIO_VSOCK_MAX_PKT_BUF_SIZE), and others drop what is longer."""

HEADER: Final = struct.Struct("<QQIIIHHIII")
"""struct virtio_vsock_hdr (5.10.6), packed, little-endian."""
HEADER_BYTES: Final = HEADER.size


class Op(enum.IntEnum):
    """VIRTIO_VSOCK_OP_*."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(enum.IntFlag):
    """VIRTIO_VSOCK_SHUTDOWN_F_*: what the sender of a SHUTDOWN will not do any more."""

    RECEIVE = 1
    SEND = 2
    BOTH = 3


class VsockPacket(NamedTuple):
    """One header, field by field as it is laid out."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    def pack(self) -> bytes:
        """The 44 bytes of it."""
        return HEADER.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> VsockPacket:
        """The header that `data` begins with.

        Raises:
            struct.error: `data` is shorter than a header.
        """
        return cls._make(HEADER.unpack_from(data))


def read_header(readable: Sequence[memoryview]) -> tuple[int, ...]:
    """The header at the start of a chain's buffers, cut however the driver liked (2.7.4.1).

    The buffers must hold `HEADER_BYTES` or more.
    """
    if len(readable[0]) >= HEADER_BYTES:
        return HEADER.unpack_from(readable[0])
    return HEADER.unpack(b"".join(cut(readable, 0, HEADER_BYTES)))


def write_header(writable: Sequence[memoryview], header: bytes) -> None:
    """Put a packed header at the start of a chain's buffers, which must hold it."""
    if len(writable[0]) >= HEADER_BYTES:
        writable[0][:HEADER_BYTES] = header
        return
    done = 0
    for view in cut(writable, 0, HEADER_BYTES):
        view[:] = header[done : done + len(view)]
        done += len(view)


def cut(buffers: Sequence[memoryview], start: int, length: int) -> list[memoryview]:
    """The views of up to `length` bytes from `start` on, none of them empty."""
    views: list[memoryview] = []
    for buffer in buffers:
        size = len(buffer)
        if start >= size:
            start -= size
            continue
        if not length:
            break
        view = buffer[start : start + length] if start or length < size else buffer
        views.append(view)
        length -= len(view)
        start = 0
    return views
