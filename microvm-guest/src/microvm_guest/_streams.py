"""A command's three streams on the host, each bounded by its window.

The agent may be one window ahead of what has been consumed here; consuming grants more, in steps
of half a window. So one slow reader holds up its own command and nobody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from microvm.errors import GuestGone, MicrovmError

if TYPE_CHECKING:
    from microvm_guest._outbox import Outbox
    from microvm_guest.protocol import AgentConnection

Grant = Callable[[int], None]


class StreamBroken(GuestGone, trio.BrokenResourceError):
    """A command's stream ended because the guest or its agent did; the cause says how."""


def _broken(error: MicrovmError) -> StreamBroken:
    broken = StreamBroken(error.message, remedy=error.remedy, console=error.console)
    broken.__cause__ = error
    return broken


class OutputSink(Protocol):
    """Where the reader task puts a command's output. Never blocks."""

    def deliver(self, data: bytes, eof: bool) -> None:
        """Take bytes that have come."""

    def fail(self, error: MicrovmError) -> None:
        """No more will come, not even an end."""


class WindowKeeper:
    """Grants what has been consumed, when it is worth a frame."""

    def __init__(self, window: int, grant: Grant) -> None:
        self._step = window // 2
        self._owed = 0
        self._grant = grant

    def consumed(self, length: int) -> None:
        """Count bytes that the host no longer holds."""
        self._owed += length
        if self._owed >= self._step:
            self._grant(self._owed)
            self._owed = 0


class CommandOutput(trio.abc.ReceiveStream):
    """stdout or stderr of a running command. Closing it throws the rest away as it comes."""

    def __init__(self, keeper: WindowKeeper) -> None:
        self._keeper = keeper
        self._chunks: deque[bytes] = deque()
        self._eof = False
        self._error: MicrovmError | None = None
        self._closed = False
        self._receiving = False
        self._news = trio.Event()

    def deliver(self, data: bytes, eof: bool) -> None:
        if self._closed:
            self._keeper.consumed(len(data))
        elif data:
            self._chunks.append(data)
        self._eof = self._eof or eof
        self._news.set()

    def fail(self, error: MicrovmError) -> None:
        if not self._eof and self._error is None:
            self._error = error
            self._news.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, or none at the end.

        Raises:
            StreamBroken: the guest or its agent ended first. What had come is given first.
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be >= 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is reading this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while not (self._chunks or self._eof or self._error or self._closed):
                self._news = trio.Event()
                await self._news.wait()
        finally:
            self._receiving = False
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if not self._chunks:
            if self._error is not None and not self._eof:
                raise _broken(self._error)
            return b""
        data = self._chunks.popleft()
        if max_bytes is not None and len(data) > max_bytes:
            self._chunks.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        self._keeper.consumed(len(data))
        return data

    def close(self) -> None:
        """Throw away what there is and what comes."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        for chunk in self._chunks:
            self._keeper.consumed(len(chunk))
        self._chunks.clear()

    async def aclose(self) -> None:
        """Throw away what there is and what comes."""
        self.close()
        await trio.lowlevel.checkpoint()


class Collector:
    """Collects output up to a bound, as it comes.

    Args:
        keeper: Grants what has been collected.
        max_bytes: The most that is kept.
        on_overflow: Called once when more has come; from then on all is thrown away.
    """

    def __init__(
        self, keeper: WindowKeeper, max_bytes: int, on_overflow: Callable[[], None]
    ) -> None:
        self._keeper = keeper
        self._max_bytes = max_bytes
        self._on_overflow = on_overflow
        self._overflown = False
        self._data = bytearray()

    def deliver(self, data: bytes, eof: bool) -> None:
        """Keep bytes, or find that they are too many."""
        if self._overflown:
            return
        if len(self._data) + len(data) > self._max_bytes:
            self._overflown = True
            self._data.clear()
            self._on_overflow()
            return
        self._data += data
        if not eof:
            self._keeper.consumed(len(data))

    def fail(self, error: MicrovmError) -> None:
        """Nothing to do: who collects waits for the command's end, not for this."""

    def result(self) -> bytes:
        """All that was collected."""
        return bytes(self._data)


class CommandStdin(trio.abc.SendStream):
    """stdin of a running command. Closing it is the command's end of file."""

    def __init__(self, connection: AgentConnection, outbox: Outbox, stream: int) -> None:
        self._connection = connection
        self._outbox = outbox
        self._stream = stream
        self._closed = False
        self._over: MicrovmError | None = None
        self._sending = False
        self._news = trio.Event()

    def more_credit(self) -> None:
        """The agent has taken some: who waits may go on."""
        self._news.set()

    def end(self, why: MicrovmError) -> None:
        """The command will read no more."""
        if self._over is None:
            self._over = why
            self._news.set()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._over is not None:
            raise _broken(self._over)

    async def _wait_for_credit(self) -> int:
        while True:
            await self._outbox.room()
            self._check()
            credit = self._connection.stdin_credit(self._stream)
            if credit:
                return credit
            self._news = trio.Event()
            await self._news.wait()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, as fast as the command reads them.

        Raises:
            trio.BrokenResourceError: the command has ended or closed its stdin.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is writing to this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            self._check()
            with memoryview(data) as view:
                at = 0
                while at < len(view):
                    credit = await self._wait_for_credit()
                    raw = self._connection.stdin(self._stream, view[at : at + credit])
                    self._outbox.put(raw)
                    at += credit
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the command has read enough for more to be sent."""
        await self._wait_for_credit()

    def close(self) -> None:
        """Send the end of file, unless the command is gone."""
        if not self._closed:
            self._closed = True
            self._news.set()
            if self._over is None:
                self._outbox.put(self._connection.stdin(self._stream, b"", eof=True))

    async def aclose(self) -> None:
        """Send the end of file, unless the command is gone."""
        self.close()
        await trio.lowlevel.checkpoint()
