"""Streams that are not sockets, made into sockets that can be handed to another process."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from microvm.forwards.carry import carry

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream


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
    nursery.start_soon(carry, stream, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    return theirs.detach()
