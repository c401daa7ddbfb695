"""Streams that are not sockets, made into sockets that can be handed to another process."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream, ReceiveStream


def descriptor_of(stream: HalfCloseableStream, nursery: trio.Nursery) -> int:
    """A descriptor that is the stream from now on.

    The socket's own, where the stream is one; else a new socket's, and a task in `nursery`
    carries bytes between the two.

    Raises:
        OSError: the host has no more sockets; the stream is still open.
    """
    if isinstance(stream, trio.SocketStream):
        return stream.socket.detach()
    ours, theirs = socket.socketpair()
    nursery.start_soon(_relay, stream, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    return theirs.detach()


async def _relay(one: HalfCloseableStream, other: HalfCloseableStream) -> None:
    """Carry bytes both ways until both have ended, or one has broken; then both are closed."""
    async with one, other:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump, one, other)
                nursery.start_soon(_pump, other, one)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other side finds the end of its socket


async def _pump(source: ReceiveStream, sink: HalfCloseableStream) -> None:
    async for chunk in source:
        await sink.send_all(chunk)
    await sink.send_eof()
