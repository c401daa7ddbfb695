"""Readers of a console: a task joins each one's socket to the hub and to the guest's input."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import BackendError

if TYPE_CHECKING:
    from microvm.consoles.hub import ConsoleHub, Send

CHUNK_BYTES: Final = 4096
MAX_DISCARDED_CHUNKS: Final = 1024
"""More than a socket holds."""
DRAIN_WITHIN_S: Final = 0.5
"""For readers to take a guest's last words; those who read at all do at once."""


class ConsoleDoor:
    """Lets readers in to one guest's console. Everything is for the trio thread.

    Args:
        hub: What the guest prints.
        send: Where it takes what is typed.
    """

    def __init__(self, hub: ConsoleHub, send: Send) -> None:
        self.hub = hub
        self._send = send
        self._nursery: trio.Nursery | None = None
        self._clients: set[trio.CancelScope] = set()

    def serve_in(self, nursery: trio.Nursery) -> None:
        """Where each reader gets a task, from now to `finish`.

        A task ends with its reader, or a moment after `finish`; not when the nursery is cancelled,
        so that last words are read.
        """
        self._nursery = nursery

    def finish(self) -> None:
        """The guest prints no more; readers have `DRAIN_WITHIN_S` to take what is left.

        May be repeated.
        """
        self._nursery = None
        self.hub.finish()
        for scope in self._clients:
            scope.deadline = min(scope.deadline, trio.current_time() + DRAIN_WITHIN_S)

    def open(self) -> trio.SocketStream:
        """A stream to the console, as `RunningMachine.open_console` says.

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
        if self._nursery is None:
            with ours:
                ours.setblocking(False)
                ours.send(self.hub.contents)  # a socket takes more than that at once
        else:
            self._nursery.start_soon(self._serve, _stream(ours))
        return _stream(theirs)

    async def _serve(self, stream: trio.SocketStream) -> None:
        tap = self.hub.tap()
        with trio.CancelScope(shield=True) as scope:
            self._clients.add(scope)
            try:
                async with stream, trio.open_nursery() as nursery:
                    nursery.start_soon(self._take_input, stream, nursery.cancel_scope)
                    while data := await tap.receive():
                        await stream.send_all(data)
                    nursery.cancel_scope.cancel()
                    _discard_typed(stream)
            except* trio.BrokenResourceError:
                pass  # the reader has gone
            finally:
                self._clients.discard(scope)
                tap.close()

    async def _take_input(self, stream: trio.SocketStream, client: trio.CancelScope) -> None:
        """Type what comes; the end of it is the client's, who may have gone altogether."""
        while data := await stream.receive_some(CHUNK_BYTES):
            self.hub.count_typed(len(data))
            await self._send(bytes(data))
        client.cancel()


def _stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def _discard_typed(stream: trio.SocketStream) -> None:
    """Closed with something unread in it, the socket would end in an error for the reader."""
    with contextlib.suppress(OSError):
        for _ in range(MAX_DISCARDED_CHUNKS):
            if not os.read(stream.socket.fileno(), CHUNK_BYTES):
                return
