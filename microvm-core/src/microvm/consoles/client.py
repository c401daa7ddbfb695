"""One reader of a console: a task that joins its socket to the hub and to the guest's input."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import BackendError

if TYPE_CHECKING:
    from microvm.consoles.hub import ConsoleHub

CHUNK_BYTES: Final = 4096
DRAIN_WITHIN_S: Final = 0.5
"""For readers to take a guest's last words; those who read at all do at once."""

Send = Callable[[bytes], Awaitable[None]]
"""Has the guest receive bytes; waits while it takes none."""


def open_client(nursery: trio.Nursery, hub: ConsoleHub, send: Send) -> trio.SocketStream:
    """A stream to the console, served by a task in `nursery` until either side ends it.

    Raises:
        BackendError: the host has no more sockets.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise BackendError(
            f"The console can't be joined: {error.strerror}.",
            remedy="Raise the limit on open files (ulimit -n), or close streams.",
        ) from error
    nursery.start_soon(_serve, _stream(ours), hub, send)
    return _stream(theirs)


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def _serve(stream: trio.SocketStream, hub: ConsoleHub, send: Send) -> None:
    tap = hub.tap()
    try:
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(_take_input, stream, hub, send, nursery.cancel_scope)
            while data := await tap.receive():
                await stream.send_all(data)
            nursery.cancel_scope.cancel()
    except* trio.BrokenResourceError:
        pass  # the reader has gone
    finally:
        tap.close()


async def _take_input(
    stream: trio.SocketStream, hub: ConsoleHub, send: Send, client: trio.CancelScope
) -> None:
    """Type what comes; the end of it is the client's, who may have gone altogether."""
    while data := await stream.receive_some(CHUNK_BYTES):
        hub.count_typed(len(data))
        await send(bytes(data))
    client.cancel()
