"""Lines for whoever reads a stream of ours, who may stop reading without holding up anything.

A pipe, a socket and a terminal take so much and then block, and O_NONBLOCK would be set for our
parent too, whose open file it is. So a thread of its own writes, and is left to itself if its write
does not end: a process ends without its daemon threads. It writes to a descriptor, since an
interpreter that ends would wait for the lock of a buffered stream; and to one of its own, since
another file may get the number of a stream that is closed while a write to it stands.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self, TextIO

from microvm.cli._backlog import Backlog, Weight

LIMIT: Final = 256
"""Lines that wait for a reader."""
LAST_WORDS_S: Final = 1.0
"""What a reader has at the end for what still waits."""


def _in_words(counts: Mapping[str, int]) -> str:
    return f"microvm: {sum(counts.values())} lines were not read in time, and are left out."


class LineWriter:
    """A block within which lines can be put to a stream; the end of it waits a moment for them.

    Args:
        stream: Where to; None where a program was started without it, and nothing is written.
        left_out: Makes a line of how many lines of each kind were not read in time.
    """

    def __init__(
        self, stream: TextIO | None, left_out: Callable[[Mapping[str, int]], str] = _in_words
    ) -> None:
        self._stream = stream
        self._backlog = Backlog(LIMIT, left_out)
        self._changed = threading.Condition()
        self._closing = False
        self._left_alone = False
        self._fd: int | None = None
        self._write_all: Callable[[int, bytes], None]
        self._error: OSError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_lines, name="lines", daemon=True)

    def __enter__(self) -> Self:
        """Begin to write."""
        if self._stream is not None:
            # Not above: a command line is parsed without it. Not in the thread: what is told last
            # would wait for it.
            from microvm.consoles.terminal import write_all

            self._write_all = write_all
            self._stream.flush()  # what was printed before comes before
            try:
                fd = self._stream.fileno()
            except OSError:  # a stream of somebody's own, in memory
                pass
            else:
                self._fd = os.dup(fd)
            self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Write what waits, but not for long.

        Raises:
            OSError: it can't be written, and the block has not failed by itself.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._stream is not None:
            self._thread.join(LAST_WORDS_S)
        with self._changed:
            self._left_alone = True
        self._ended.set()
        if self._error is not None and error is None:
            raise self._error

    def put(self, text: str, *, kind: str, weight: Weight) -> None:
        """Have a line written. Waits for nobody; from any thread."""
        if self._stream is not None:
            with self._changed:
                self._backlog.put(text, kind=kind, weight=weight)
                self._changed.notify()

    async def raise_when_lost(self) -> None:
        """Wait until nothing can be written any more.

        Raises:
            OSError: why; BrokenPipeError if the reader has gone.
        """
        import trio

        await trio.to_thread.run_sync(self._ended.wait, abandon_on_cancel=True)
        if self._error is not None:
            raise self._error

    def _write_lines(self) -> None:
        try:
            while (line := self._next()) is not None:
                self._write(f"{line}\n")
        except OSError as error:
            self._error = error
        finally:
            if self._fd is not None:
                os.close(self._fd)
            self._ended.set()

    def _next(self) -> str | None:
        with self._changed:
            while (line := self._backlog.take()) is None and not self._closing:
                self._changed.wait()
            return None if self._left_alone else line

    def _write(self, text: str) -> None:
        if self._fd is not None:
            self._write_all(self._fd, text.encode("utf-8", "backslashreplace"))
        elif self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
