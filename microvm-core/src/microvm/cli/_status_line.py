"""One line of a terminal that tells how things are, written over as they change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from microvm.console import visible_text


class StatusLine:
    """The last line of a terminal; nothing at all where there is no terminal.

    Args:
        stream: Where to write; None where a program was started without.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._shown = ""
        self._holders = 0

    @property
    def live(self) -> bool:
        """Whether somebody sees it."""
        return self._stream is not None

    def show(self, text: str) -> None:
        """Show this, in place of what was there. Control characters are shown as escapes."""
        text = visible_text(text.encode("utf-8", "backslashreplace"))
        if self._stream is not None and not self._holders and text != self._shown:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
            self._shown = text

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
