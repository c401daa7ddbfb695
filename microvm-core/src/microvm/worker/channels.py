"""Streams to a guest in another process: the caller's side.

`connect` and `listen` are asked of the worker, and each stream is a socket that it hands over. For
a listener the worker accepts ahead, `ACCEPT_AHEAD` streams that no one has looked at yet, so that
a guest's first call finds its way without another round trip; more wait in the worker.
"""

from __future__ import annotations

import logging
import os
import socket
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from microvm.abc import GuestChannels
from microvm.errors import BackendError, ConfigError, GuestGone, MicrovmError
from microvm.worker.values import wrong

if TYPE_CHECKING:
    import trio

    from microvm.worker.listener import WorkerListener
    from microvm.worker.wire import Received

log = logging.getLogger("microvm.worker")

ACCEPT_AHEAD: Final = 16
MAX_PORT: Final = (1 << 32) - 1


class WorkerLink(Protocol):
    """The connection to a worker, as its channels use it."""

    async def request(self, what: str, **arguments: Any) -> Received:
        """Ask, and wait for the answer."""

    def tell(self, what: str, **arguments: Any) -> None:
        """Say, without an answer."""


class WorkerChannels(GuestChannels):
    """A machine's channels, while its devices are in a worker; to be had before it starts.

    What is listened to by then is told to the worker before it lets the guest run.
    """

    def __init__(self) -> None:
        self._link: WorkerLink | None = None
        self._gone = False
        self._listeners: dict[int, WorkerListener] = {}
        self._last_number = 0

    @cached_property
    def _changed(self) -> trio.Event:
        import trio

        return trio.Event()

    # --- GuestChannels -------------------------------------------------------------------

    async def connect(self, port: int) -> trio.SocketStream:
        """As `GuestChannels.connect`."""
        _check_port(port)
        if self._link is None and not self._gone:
            await self._changed.wait()
        if self._link is None or self._gone:
            raise GuestGone("The machine has ended; its ports can't be reached any more.")
        return stream_over(await self._link.request("connect", port=port))

    def listen(self, port: int) -> WorkerListener:
        """As `GuestChannels.listen`.

        What only the worker finds wrong with a port is raised by `accept`.

        Raises:
            GuestGone: the machine has ended.
        """
        from microvm.worker.listener import WorkerListener

        _check_port(port)
        if self._gone:
            raise GuestGone("The machine has ended; it will not connect any more.")
        if any(listener.port == port for listener in self._listeners.values()):
            raise ConfigError(
                f"Port {port} of the host has a listener already.",
                remedy="Close that one first, or choose another port.",
            )
        self._last_number = number = self._last_number + 1
        listener = WorkerListener(
            port, on_taken=lambda: self._tell_more(number), on_close=lambda: self._forget(number)
        )
        self._listeners[number] = listener
        if self._link is not None:
            self._link.tell("listen", listener=number, port=port)
        return listener

    def _tell_more(self, number: int) -> None:
        if self._link is not None and not self._gone:
            self._link.tell("more", listener=number)

    def _forget(self, number: int) -> None:
        if self._listeners.pop(number, None) is not None and self._link is not None:
            self._link.tell("unlisten", listener=number)

    # --- for the machine -----------------------------------------------------------------

    def join(self, link: WorkerLink) -> None:
        """The worker is there: tell it who listens, and let who waits go on."""
        self._link = link
        for number, listener in self._listeners.items():
            link.tell("listen", listener=number, port=listener.port)
        self._changed.set()

    def accepted(self, number: object, received: Received) -> None:
        """A guest's connection has come.

        Raises:
            WorkerProtocolError: without a socket, or more than were asked for.
        """
        if not isinstance(number, int) or number not in self._listeners:
            received.drop()  # it was closed meanwhile
            return
        listener = self._listeners[number]
        if received.kept_out:
            log.warning(
                "A guest's connection to port %d is lost: no open file is left.", listener.port
            )
            self._tell_more(number)
            return
        stream = stream_over(received)
        if not listener.offer(stream):
            stream.socket.close()
            raise wrong("more of a guest's connections than were asked for")

    def failed(self, number: object, error: MicrovmError) -> None:
        """The worker will take no connections for this listener any more."""
        listener = self._listeners.pop(number, None) if isinstance(number, int) else None
        if listener is not None:
            listener.fail(error)

    def machine_ended(self) -> None:
        """No more will come: what waits can still be accepted, then `accept` raises."""
        self._gone = True
        self._changed.set()
        for listener in self._listeners.values():
            listener.fail(GuestGone(f"The machine has ended; port {listener.port} hears no more."))
        self._listeners.clear()


def stream_over(received: Received) -> trio.SocketStream:
    """A trio stream over the socket that came with a message.

    Raises:
        BackendError: this process has no descriptors left.
        WorkerProtocolError: what came is no stream socket.
    """
    import trio

    if received.kept_out:
        raise BackendError(
            "This process can't take another stream.",
            remedy="Raise the limit on open files (ulimit -n), or close streams.",
        )
    descriptor = received.take()
    if descriptor is None:
        raise wrong("no socket where one was asked for")
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise wrong("a descriptor that is no socket") from None
    try:
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    except (OSError, ValueError):
        sock.close()
        raise wrong("a socket that carries no stream") from None


def _check_port(port: int) -> None:
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"A port is a number from 0 to {MAX_PORT}, not {port!r}.")
