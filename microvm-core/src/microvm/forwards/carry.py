"""Bytes both ways between two streams, each way with an end of its own."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream, ReceiveStream

_RESET: Final = struct.pack("ii", 1, 0)
"""struct linger: on, for no time. Closing a TCP socket so sends a reset (socket(7), SO_LINGER)."""
_CHUNK_BYTES: Final = 64 * 1024


async def carry(one: HalfCloseableStream, other: HalfCloseableStream) -> None:
    """Carry bytes until both ways have ended or one stream has broken; then both are closed.

    A reader that is slow holds up its writer: what is on the way is one chunk each way. When one
    stream breaks, a TCP socket at the other end is reset, so that nobody takes a part for the
    whole; when this is cancelled, those are that have not been sent all. Raises nothing but
    cancellation.
    """
    async with one, other:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_one_way, one, other)
                nursery.start_soon(_one_way, other, one)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            for stream in (one, other):
                reset_on_close(stream)


async def _one_way(source: ReceiveStream, sink: HalfCloseableStream) -> None:
    try:
        while chunk := await source.receive_some(_CHUNK_BYTES):
            await sink.send_all(chunk)
        await sink.send_eof()
    except trio.Cancelled:
        reset_on_close(sink)
        raise


def reset_on_close(stream: HalfCloseableStream) -> None:
    """Have a TCP socket's end be a reset; nothing happens to other streams."""
    if isinstance(stream, trio.SocketStream) and stream.socket.family in (
        socket.AF_INET,
        socket.AF_INET6,
    ):
        try:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            return  # it is closed already
