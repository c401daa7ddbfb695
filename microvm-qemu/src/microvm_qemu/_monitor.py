"""QEMU's monitor on trio: `QmpSession` over a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from microvm.errors import BackendError, GuestGone
from microvm_qemu._qmp import Event, Greeting, QmpMessage, QmpSession, Refusal, Reply

if TYPE_CHECKING:
    from trio.socket import SocketType

CHUNK_BYTES = 64 * 1024


class Monitor:
    """One connection. `receive` is for one task, which must keep calling it; `execute` for any."""

    def __init__(self, sock: SocketType) -> None:
        self._socket = sock
        self._session = QmpSession()
        self._waiting: dict[int, _Answer] = {}
        self._greeted = trio.Event()
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
            case Greeting():
                self._greeted.set()
            case Reply() | Refusal():
                answer = self._waiting.get(message.id)
                if answer is not None:
                    answer.give(message)
        return None

    def _close(self) -> None:
        self._gone = True
        self._greeted.set()
        for answer in self._waiting.values():
            answer.give(None)

    async def negotiate(self) -> None:
        """Wait for the greeting and leave negotiation mode.

        QEMU answers from its main loop: by then the machine is made and its guest runs.

        Raises:
            GuestGone: QEMU has ended.
        """
        await self._greeted.wait()
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its result.

        Raises:
            GuestGone: QEMU has ended, or does before it answers.
            BackendError: QEMU refused the command.
        """
        number, data = self._session.command(command, arguments)
        answer = self._waiting[number] = _Answer()
        try:
            if self._gone:
                raise _gone()
            # A Unix socket takes so little whole or not at all, also when this is cancelled.
            if await self._socket.send(data) < len(data):
                raise BackendError("QEMU does not read its monitor.")
            message = await answer.wait()
        except (BrokenPipeError, ConnectionResetError):
            raise _gone() from None
        finally:
            del self._waiting[number]
        match message:
            case None:
                raise _gone()
            case Refusal():
                raise BackendError(f"QEMU refused {command!r}: {message.description}")
            case Reply():
                return message.value


class _Answer:
    """The reply to one command, or None for a connection that is gone."""

    def __init__(self) -> None:
        self._known = trio.Event()
        self._message: Reply | Refusal | None = None

    def give(self, message: Reply | Refusal | None) -> None:
        if not self._known.is_set():
            self._message = message
            self._known.set()

    async def wait(self) -> Reply | Refusal | None:
        await self._known.wait()
        return self._message


def _gone() -> GuestGone:
    return GuestGone("The machine has ended.")
