"""What a guest prints, kept within bounds and made safe to show.

A guest prints what it likes: a gigabyte, a line without end, escape sequences that would retitle
the reader's terminal. `ConsoleRing` keeps the last bytes of it as they came; `visible_text` and
`ConsoleRing.tail` are for people, and let no control character through.

Pure: bytes in, text out. Not for use by several threads at once.
"""

from __future__ import annotations

from typing import Final

CAPACITY_BYTES: Final = 64 * 1024
"""What a ring keeps. A kernel's whole boot log is about 20 KiB, a panic 4 KiB."""

TAIL_LINES: Final = 25
"""What a tail shows: a panic's call trace fits."""

MAX_LINE_CHARACTERS: Final = 400
"""What a tail shows of one line."""

TAB_COLUMNS: Final = 8


class ConsoleRing:
    """The last `capacity_bytes` bytes of a stream, and its last lines as text.

    Memory is bounded by twice the capacity plus the chunk being fed.
    """

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        if capacity_bytes < 1:
            raise ValueError(f"capacity_bytes must be positive, not {capacity_bytes}")
        self._capacity = capacity_bytes
        self._kept = bytearray()
        self._total = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream; the oldest make room for them."""
        self._total += len(data)
        self._kept += data[-self._capacity :]
        # Cutting at twice the capacity moves each byte once at most, however small the chunks.
        if len(self._kept) >= 2 * self._capacity:
            del self._kept[: -self._capacity]

    @property
    def contents(self) -> bytes:
        """The bytes kept, as they came."""
        return bytes(self._kept[-self._capacity :])

    @property
    def total_bytes(self) -> int:
        """How many bytes were ever fed."""
        return self._total

    @property
    def dropped_bytes(self) -> int:
        """How many of them are gone."""
        return max(0, self._total - self._capacity)

    def tail(self, lines: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines that are not blank, oldest first, in visible characters only.

        A line still being written counts. Serial consoles end lines with CR LF or more CRs; a
        lone CR within a line begins it anew, and only what a terminal would be left with is shown.
        """
        kept = self.contents
        texts: list[str] = []
        end = len(kept)
        while end > 0 and len(texts) < lines:
            begin = kept.rfind(b"\n", 0, end) + 1
            text = _line(kept[begin:end], beheaded=begin == 0 and self.dropped_bytes > 0)
            if text:
                texts.append(text)
            end = begin - 1
        return tuple(reversed(texts))


def visible_text(data: bytes) -> str:
    r"""`data` as text in which every character can be seen.

    Control characters, what is not UTF-8, and characters that have no shape of their own (line
    separators, changes of writing direction) become escapes such as ``\x1b``; tabs become
    spaces. The result has no line breaks, and is safe on a terminal and in an exception.
    """
    text = data.decode("utf-8", "backslashreplace").expandtabs(TAB_COLUMNS)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def visible_lines(text: str) -> str:
    """The same of a text that may have several lines, which stay."""
    lines = text.split("\n")
    return "\n".join(visible_text(line.encode("utf-8", "backslashreplace")) for line in lines)


def _line(raw: bytes, *, beheaded: bool) -> str:
    raw = raw.rstrip(b"\r\0 \t")
    raw = raw[raw.rfind(b"\r") + 1 :]
    # A character is 4 bytes at most, so this is more than can be shown, whatever it is.
    text = visible_text(raw[: 4 * MAX_LINE_CHARACTERS + 1])
    shown = text[:MAX_LINE_CHARACTERS].rstrip()
    cut = len(text) > MAX_LINE_CHARACTERS
    if not shown:
        return ""
    return ("[...]" if beheaded else "") + shown + ("[...]" if cut else "")
