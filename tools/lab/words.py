"""Telling a command's output from the mark behind it. Pure.

The command's stdout and stderr come over two virtio-serial ports. What lies behind a port has no
end of its own, so the lab's init closes each stream with a mark that holds a random token, which
no command can print by chance, and the exit code: ``\\0lab <token> 3\\n``.
"""

from __future__ import annotations

import re


class Words:
    """One stream, fed as it comes."""

    def __init__(self, token: str) -> None:
        self._lead = f"\0lab {token} ".encode()
        self._mark = re.compile(re.escape(self._lead) + rb"([0-9]+)\n")
        self._held = b""
        self.exit_code: int | None = None
        """The command's, once the mark has come; the stream is then at its end."""

    def feed(self, data: bytes) -> bytes:
        """What can be passed on now. A tail that may be the mark's beginning is held back."""
        if self.exit_code is not None:
            return b""
        self._held += data
        if found := self._mark.search(self._held):
            self.exit_code = int(found[1])
            ours, self._held = self._held[: found.start()], b""
            return ours
        return self._pass_on(self._held_from())

    def rest(self) -> bytes:
        """What was held back, when the stream broke off."""
        return self._pass_on(len(self._held))

    def _pass_on(self, length: int) -> bytes:
        ours, self._held = self._held[:length], self._held[length:]
        return ours

    def _held_from(self) -> int:
        """Where the mark may begin: its whole lead, or the part of it at the very end."""
        whole = self._held.find(self._lead)
        if whole >= 0:
            return whole
        for length in range(min(len(self._lead), len(self._held)), 0, -1):
            if self._held.endswith(self._lead[:length]):
                return len(self._held) - length
        return len(self._held)
