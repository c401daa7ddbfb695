"""How far a long job is, on a terminal, in a log, or nowhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Protocol, TextIO

Clock = Callable[[], float]

REDRAW_S = 0.1
BAR_CELLS = 24


class Progress(Protocol):
    """Told about a job by the thread that does it."""

    def update(self, label: str, done: int, total: int) -> None:
        """`done` of `total` units of the step `label`; a total of 0 means nobody knows."""

    def close(self) -> None:
        """The job is over, well or badly: leave the terminal as it should be."""


class Silent:
    """Tells nobody."""

    def update(self, label: str, done: int, total: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """One line for each step, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._label: str | None = None

    def update(self, label: str, done: int, total: int) -> None:
        """Print `label` when it is a new one."""
        if label != self._label:
            self._label = label
            print(f"microvm: {label}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class Bar:
    """One line on a terminal, drawn anew at most ten times a second; a line stays per step."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Clock = time.monotonic,
        columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._columns = columns
        self._label: str | None = None
        self._began = 0.0
        self._drawn = float("-inf")

    def update(self, label: str, done: int, total: int) -> None:
        """Draw, unless it was drawn a moment ago."""
        now = self._clock()
        if label != self._label:
            self._finish_step(now)
            self._label, self._began, self._drawn = label, now, float("-inf")
        if now - self._drawn >= REDRAW_S:
            self._drawn = now
            self._write(render(label, done, total, now - self._began))

    def close(self) -> None:
        """End the line of the last step."""
        self._finish_step(self._clock())
        self._label = None

    def _finish_step(self, now: float) -> None:
        if self._label is not None:
            self._write(f"{self._label}: {now - self._began:.1f} s")
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, line: str) -> None:
        # One cell is left free: a full last column wraps on some terminals.
        self._stream.write("\r\x1b[K" + line[: max(self._columns() - 1, 1)])
        self._stream.flush()


def render(label: str, done: int, total: int, elapsed_s: float) -> str:
    """One line of a bar. An estimate that proves too low shows as all but done."""
    if total <= 0:
        return f"{label} ... {elapsed_s:.0f} s"
    share = min(max(done / total, 0.0), 1.0 if done == total else 0.99)
    filled = int(share * BAR_CELLS)
    bar = "#" * filled + "." * (BAR_CELLS - filled)
    return f"{label} [{bar}] {share:4.0%} {elapsed_s:.0f} s"


def progress_for(stream: TextIO, *, quiet: bool = False) -> Progress:
    """The progress that suits a stream: a bar on a terminal, lines elsewhere, or nothing."""
    if quiet:
        return Silent()
    return Bar(stream) if stream.isatty() else Lines(stream)
