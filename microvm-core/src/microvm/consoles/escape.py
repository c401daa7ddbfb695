"""How a person leaves a console: Ctrl-], or ``~.`` at the beginning of a line. Pure.

Both are what people know from other consoles: telnet and virsh have the first, ssh the second.
"""

from __future__ import annotations

from typing import Final

CTRL_RIGHT_BRACKET: Final = 0x1D
_LINE_ENDS: Final = b"\r\n"


class EscapeReader:
    """Goes through what is typed and takes out the keys that leave.

    A ``~`` at the beginning of a line is kept until the next key says what it was; typed twice it
    is one.
    """

    def __init__(self) -> None:
        self._at_line_begin = True
        self._tilde = False
        self.left = False
        """Whether the person has left; what was typed behind that is nobody's."""

    def feed(self, data: bytes) -> bytes:
        """What of it is for the guest."""
        out = bytearray()
        for byte in data:
            if self.left:
                break
            self._take(byte, out)
        return bytes(out)

    def _take(self, byte: int, out: bytearray) -> None:
        if byte == CTRL_RIGHT_BRACKET:
            self.left = True
        elif self._tilde:
            self._tilde = False
            if byte == ord("."):
                self.left = True
                return
            if byte != ord("~"):
                out += b"~"
            out.append(byte)
            self._at_line_begin = byte in _LINE_ENDS
        elif byte == ord("~") and self._at_line_begin:
            self._tilde = True
        else:
            out.append(byte)
            self._at_line_begin = byte in _LINE_ENDS
