"""A running command without async; its streams are binary files, as those of `subprocess.Popen`."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import trio
    from _typeshed import ReadableBuffer, WriteableBuffer

    from microvm.abc import GuestProcess as AsyncGuestProcess
    from microvm.abc import RunResult, TtySize
    from microvm.sync._loop import BackgroundLoop

READ_BYTES: Final = 64 * 1024


class _Output(io.RawIOBase):
    """The raw half of stdout or stderr."""

    def __init__(self, loop: BackgroundLoop, stream: trio.abc.ReceiveStream) -> None:
        self._loop = loop
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise ValueError("This stream of the command's is closed.")
        with memoryview(buffer).cast("B") as view:
            data = self._loop.call(partial(self._stream.receive_some, len(view)))
            view[: len(data)] = data
            return len(data)

    def close(self) -> None:
        # Not waited for: the collector of garbage may close it, on any thread.
        if not self.closed:
            super().close()
            self._loop.soon(self._stream.aclose)


class CommandInput(io.RawIOBase):
    """stdin of a running command: unbuffered, and `write` writes all of it.

    Closing it is the command's end of file.
    """

    def __init__(self, loop: BackgroundLoop, stream: trio.abc.SendStream) -> None:
        self._loop = loop
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Write bytes, as fast as the command reads them.

        Raises:
            GuestError: the command has ended or closed its stdin.
        """
        if self.closed:
            raise ValueError("This command's stdin is closed.")
        with memoryview(data).cast("B") as view:
            self._loop.call(partial(self._stream.send_all, view))
            return len(view)

    def close(self) -> None:
        """Send the end of file."""
        if not self.closed:
            super().close()
            self._loop.soon(self._stream.aclose)


class GuestProcess:
    """A command that runs in the guest. Made by `Machine.spawn` and `Guest.spawn`.

    `stdout` and `stderr` are buffered binary files: `read`, `read1`, `readline`, iteration by
    lines; wrap one in `io.TextIOWrapper` for text. Two threads may read the two.
    """

    stdin: CommandInput
    stdout: io.BufferedReader
    stderr: io.BufferedReader

    def __init__(self, loop: BackgroundLoop, process: AsyncGuestProcess) -> None:
        self._loop = loop
        self._process = process
        self.stdin = CommandInput(loop, process.stdin)
        self.stdout = io.BufferedReader(_Output(loop, process.stdout), READ_BYTES)
        self.stderr = io.BufferedReader(_Output(loop, process.stderr), READ_BYTES)

    def wait(self) -> RunResult:
        """Wait for the end. `stdout` and `stderr` of the result are empty: you had the streams.

        Raises:
            GuestGone: the machine or its agent ended first; the command's end is unknown.
        """
        return self._loop.call(self._process.wait)

    def send_signal(self, signal: int) -> None:
        """Send a signal (the guest's numbering) to the command's process group."""
        self._loop.call(partial(self._process.send_signal, signal))

    def resize(self, size: TtySize) -> None:
        """Tell a command with a tty its new window size."""
        self._loop.call(partial(self._process.resize, size))
