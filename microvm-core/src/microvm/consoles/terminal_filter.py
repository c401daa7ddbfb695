"""What of a guest's output may reach a person's terminal. Pure.

A terminal does as it is told: it sets its title, fills the clipboard, prints to a printer, types an
answer. A guest at its console needs none of that. Through come text, the control characters of
typewriters, and the control sequences (ECMA-48, 5.4) that move the cursor, erase, scroll, color and
switch modes; the rest is left out without a trace, since half a sequence would be as bad.
"""

from __future__ import annotations

import codecs
import enum
from typing import Final

MAX_SEQUENCE_CHARACTERS: Final = 64
"""Of one that is passed on; real ones are half as long."""
MAX_STRING_CHARACTERS: Final = 4096
"""Of one that is left out: behind that, a guest that never ends it can be read again."""

_PASSED_CONTROLS: Final = frozenset("\a\b\t\n\v\f\r")
_PASSED_FINALS: Final = frozenset("@ABCDEFGHIJKLMPSTXZ`abdefghlmrsu")
"""CSI sequences by their last character. Not: c, n (the terminal answers by typing), i (prints),
t (resizes and reports), p, q, v to z."""
_PASSED_ESCAPES: Final = frozenset("78DEHM=>")
"""Save and restore the cursor, index, next line, set tab, reverse index, keypad modes."""
_STRINGS: Final = frozenset("]PX^_")
"""OSC, DCS, SOS, PM, APC: a text for the terminal itself follows."""
_STRING_ENDS: Final = frozenset("\a\x18\x1a\x9c")
_CHARSETS: Final = frozenset("()*+")


class _State(enum.Enum):
    TEXT = enum.auto()
    ESCAPE = enum.auto()
    CHARSET = enum.auto()
    SEQUENCE = enum.auto()
    STRING = enum.auto()
    STRING_ESCAPE = enum.auto()


class TerminalFilter:
    """Takes a stream of bytes in pieces, and gives what may be shown, in UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = _State.TEXT
        self._sequence = ""
        self._string_characters = 0

    def feed(self, data: bytes) -> bytes:
        """What of these bytes, and of a sequence that was begun before, may be shown."""
        out: list[str] = []
        for character in self._decoder.decode(data):
            self._take(character, out)
        return "".join(out).encode("utf-8", "replace")

    def _take(self, character: str, out: list[str]) -> None:
        if character == "\x1b" and self._state is not _State.STRING:
            self._state = _State.ESCAPE
        elif self._state is _State.TEXT:
            self._take_text(character, out)
        elif self._state is _State.ESCAPE:
            self._take_escape(character, out)
        elif self._state is _State.CHARSET:
            self._state = _State.TEXT
            if character.isascii() and character.isalnum():
                out.append(self._sequence + character)
        elif self._state is _State.SEQUENCE:
            self._take_sequence(character, out)
        else:
            self._take_string(character)

    def _take_text(self, character: str, out: list[str]) -> None:
        # The C1 controls, U+0080 to U+009F, are sequences' beginnings too.
        control = character < " " or "\x7f" <= character <= "\x9f"
        if not control or character in _PASSED_CONTROLS:
            out.append(character)

    def _take_escape(self, character: str, out: list[str]) -> None:
        self._state = _State.TEXT
        if character == "[":
            self._state, self._sequence = _State.SEQUENCE, "\x1b["
        elif character in _STRINGS:
            self._state, self._string_characters = _State.STRING, 0
        elif character in _CHARSETS:
            self._state, self._sequence = _State.CHARSET, "\x1b" + character
        elif character in _PASSED_ESCAPES:
            out.append("\x1b" + character)

    def _take_sequence(self, character: str, out: list[str]) -> None:
        if "\x20" <= character <= "\x3f":  # parameters and intermediates
            if len(self._sequence) < MAX_SEQUENCE_CHARACTERS:
                self._sequence += character
            return
        self._state = _State.TEXT
        plain = not any("\x20" <= c <= "\x2f" for c in self._sequence)
        whole = len(self._sequence) < MAX_SEQUENCE_CHARACTERS
        if character in _PASSED_FINALS and plain and whole:
            out.append(self._sequence + character)
        elif character in _PASSED_CONTROLS:
            out.append(character)

    def _take_string(self, character: str) -> None:
        """Until ST (ESC backslash), BEL, which terminals take for it, or what cancels it."""
        self._string_characters += 1
        ended = self._state is _State.STRING_ESCAPE and character == "\\"
        if ended or character in _STRING_ENDS or self._string_characters >= MAX_STRING_CHARACTERS:
            self._state = _State.TEXT
        else:
            self._state = _State.STRING_ESCAPE if character == "\x1b" else _State.STRING
