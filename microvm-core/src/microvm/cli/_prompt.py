"""Questions to whoever sits at the terminal, asked beside all else that goes on.

The terminal is read when there is something to read, on trio's thread. A thread that waits in
`input` or `getpass` can't be called off: it takes the answer to the next question, and whoever ends
the program meanwhile has a terminal that shows nothing he types.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from microvm.consoles.terminal import line_terminal, read_shared, write_shared

if TYPE_CHECKING:
    from microvm.cli._status_line import StatusLine

STDIN, STDERR = 0, 2


class Prompt:
    """Asks, one question at a time; the status line waits for the answer too.

    Args:
        keyboard: The terminal's descriptor; it is read and its echo is set.
        screen: Where questions are shown.
        status: What else is written to that terminal.
    """

    def __init__(self, keyboard: int, screen: int, status: StatusLine) -> None:
        self._keyboard = keyboard
        self._screen = screen
        self._status = status
        self._lock = trio.Lock()

    async def ask(self, question: str, *, echo: bool) -> str | None:
        """The line that is typed after the question is shown; None where there will be none.

        Cancelled, or left by a signal, it gives the terminal back as it was, and forgets what was
        typed by half.
        """
        async with self._lock:
            with self._status.held(), line_terminal(self._keyboard, echo=echo):
                await write_shared(self._screen, question.encode("utf-8", "replace"))
                return await self._line()

    async def _line(self) -> str | None:
        typed = b""
        # More than one reading where Ctrl-D was typed in the middle of a line.
        while not typed.endswith(b"\n"):
            data = await read_shared(self._keyboard)
            if not data:
                break
            typed += data
        return typed.removesuffix(b"\n").decode("utf-8", "replace") if typed else None


def prompt_here(status: StatusLine) -> Prompt | None:
    """At this program's own terminal; None if nobody types its input."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    seen = sys.stderr is not None and sys.stderr.isatty()
    return Prompt(STDIN, STDERR if seen else STDIN, status)
