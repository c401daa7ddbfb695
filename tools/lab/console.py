"""What comes over the lab's serial console: kept for the case of failure, shown on demand."""

from __future__ import annotations

import sys
import time
from collections import deque

KEPT_LINES = 25
UP = "lab: up"
"""What second.sh says before it starts the command."""


class Console:
    """The console's lines, fed as they come."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._began = time.monotonic()
        self._rest = b""
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.up_after_s: float | None = None
        """How long the lab took to come to the command, once it has."""

    def feed(self, data: bytes) -> None:
        """Take in what was printed."""
        if self._show:
            sys.stderr.buffer.write(data)
            sys.stderr.flush()
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in (raw.decode(errors="replace").strip() for raw in whole):
            if line == UP:
                self.up_after_s = time.monotonic() - self._began
            self._lines.append(line)

    def tail(self) -> str:
        """The last lines, indented, for an error."""
        lines = [line for line in (*self._lines, self._rest.decode(errors="replace")) if line]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"
