"""One line of a terminal that tells how things are, written over as they change.

A terminal that is held with Ctrl-S, or whose window hangs, takes nothing, and who writes to it
waits: a proxy would stand still with it. So the line goes by an open file of its own that never
blocks, which O_NONBLOCK at our standard error would make our parent's too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from microvm.console import visible_text


class StatusLine:
    """The last line of a terminal; nothing at all where there is none.

    Args:
        terminal: A descriptor that never blocks; None where nobody would see it.
    """

    def __init__(self, terminal: int | None) -> None:
        self._terminal = terminal
        self._shown: str | None = ""
        self._holders = 0

    @property
    def live(self) -> bool:
        """Whether somebody sees it."""
        return self._terminal is not None

    def show(self, text: str) -> None:
        """Show this, in place of what was there. Control characters are shown as escapes.

        Waits for nobody: where the terminal takes nothing now, this is not shown.
        """
        text = visible_text(text.encode("utf-8", "backslashreplace"))
        if self._terminal is not None and not self._holders and text != self._shown:
            line = f"\r\x1b[K{text}".encode()
            self._shown = text if _write(self._terminal, line) == len(line) else None

    def clear(self) -> None:
        """Leave an empty line."""
        self.show("")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block the line is somebody else's, and nothing is shown."""
        self.clear()
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1


@contextmanager
def status_line(stream: TextIO | None) -> Iterator[StatusLine]:
    """A line at this stream's terminal, cleared at the end.

    It shows nothing where there is no terminal, or none that can be opened once more.

    Args:
        stream: Where a person would look; None where a program was started without, or prints for
            another program.
    """
    terminal = None if stream is None else _opened_again(stream)
    status = StatusLine(terminal)
    try:
        yield status
    finally:
        status.clear()
        if terminal is not None:
            os.close(terminal)


def _opened_again(stream: TextIO) -> int | None:
    if not stream.isatty() or os.name != "posix":
        return None
    fd = stream.fileno()
    try:
        return _open(os.ttyname(fd))
    except OSError:  # another user's, as after su(1), or another mount namespace's
        pass
    try:
        os.tcgetpgrp(fd)  # an error unless it is our controlling terminal
        return _open("/dev/tty")
    except OSError:
        return None


def _open(terminal: str) -> int:
    return os.open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)


def _write(terminal: int, data: bytes) -> int:
    try:
        return os.write(terminal, data)
    except OSError:  # BlockingIOError; or it has hung up, of which SIGHUP tells
        return 0
