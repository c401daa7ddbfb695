"""A running command without async; its streams are binary files, as those of `subprocess.Popen`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from microvm.sync._streams import StreamWriter, reader

if TYPE_CHECKING:
    import io

    from microvm.abc import GuestProcess as AsyncGuestProcess
    from microvm.abc import RunResult, TtySize
    from microvm.sync._loop import BackgroundLoop


class GuestProcess:
    """A command that runs in the guest. Made by `Machine.spawn` and `Guest.spawn`.

    `stdout` and `stderr` are buffered binary files: `read`, `read1`, `readline`, iteration by
    lines; wrap one in `io.TextIOWrapper` for text. Two threads may read the two.
    """

    stdin: StreamWriter
    stdout: io.BufferedReader
    stderr: io.BufferedReader

    def __init__(self, loop: BackgroundLoop, process: AsyncGuestProcess) -> None:
        self._loop = loop
        self._process = process
        self.stdin = StreamWriter(loop, process.stdin)
        self.stdout = reader(loop, process.stdout)
        self.stderr = reader(loop, process.stderr)

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
