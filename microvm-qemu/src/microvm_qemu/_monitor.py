"""QEMU's monitor on trio: `QmpSession` over a socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from microvm.errors import BackendError, GuestGone
from microvm_qemu._qmp import Event, QmpMessage, QmpSession, Refusal, Reply

if TYPE_CHECKING:
    from trio.socket import SocketType

CHUNK_BYTES = 64 * 1024


class Monitor:
    """One connection. `receive` is for one task, which must keep calling it; `execute` for any."""

    def __init__(self, sock: SocketType) -> None:
        self._socket = sock
        self._session = QmpSession()
        self._waiting: dict[int, _Answer] = {}
        self._last_number = 0
        self._gone = False

    async def receive(self) -> list[Event] | None:
        """The next events; None once QEMU has closed the connection.

        Raises:
            QmpProtocolError: what came is not QMP.
        """
        while True:
            try:
                data = await self._socket.recv(CHUNK_BYTES)
                messages = self._session.receive(data)
            except ConnectionResetError:
                data, messages = b"", []
            except BackendError:
                self._close()
                raise
            if not data:
                self._close()
                return None
            events = [event for event in map(self._take, messages) if event is not None]
            if events:
                return events

    def _take(self, message: QmpMessage) -> Event | None:
        match message:
            case Event():
                return message
            case Reply() | Refusal():
                answer = self._waiting.get(message.id)
                if answer is not None:
                    answer.give(message)
        return None

    def _close(self) -> None:
        self._gone = True
        for answer in self._waiting.values():
            answer.give(None)

    async def begin(self) -> None:
        """Leave negotiation mode and let the guest run, which must have been made with ``-S``.

        Before that QEMU drops events; a guest that ran could end without a word. Both commands
        are in the socket before QEMU looks, so that nothing waits for a round trip.

        Raises:
            GuestGone: QEMU has ended, or does before it answers.
            BackendError: QEMU refused.
        """
        with self._asking() as negotiated, self._asking() as running:
            await self._send(
                self._session.command(negotiated.number, "qmp_capabilities")
                + self._session.command(running.number, "cont")
            )
            await negotiated.value()
            await running.value()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result.

        Raises:
            GuestGone: QEMU has ended, or does before it answers.
            BackendError: QEMU refused the command.
        """
        with self._asking() as answer:
            await self._send(self._session.command(answer.number, command, arguments))
            return await answer.value()

    @contextmanager
    def _asking(self) -> Iterator[_Answer]:
        self._last_number += 1
        answer = self._waiting[self._last_number] = _Answer(self._last_number)
        try:
            yield answer
        finally:
            del self._waiting[answer.number]

    async def _send(self, data: bytes) -> None:
        if self._gone:
            raise _gone()
        try:
            # A Unix socket takes so little whole or not at all, also when this is cancelled.
            sent = await self._socket.send(data)
        except (BrokenPipeError, ConnectionResetError):
            raise _gone() from None
        if sent < len(data):
            raise BackendError("QEMU does not read its monitor.")


class _Answer:
    """The reply to one command, or None for a connection that is gone."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._known = trio.Event()
        self._message: Reply | Refusal | None = None

    def give(self, message: Reply | Refusal | None) -> None:
        if not self._known.is_set():
            self._message = message
            self._known.set()

    async def value(self) -> Any:
        """What the command returned, once it has."""
        await self._known.wait()
        match self._message:
            case Reply(value=value):
                return value
            case Refusal(description=description):
                raise BackendError(f"QEMU refused a command: {description}")
            case None:
                raise _gone()


def _gone() -> GuestGone:
    return GuestGone("The machine has ended.")
