"""Where a guest's serial port prints to: written on vCPU threads, read on the trio thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from microvm.console_signs import SignReader, Signs

if TYPE_CHECKING:
    from microvm.consoles.hub import ConsoleHub

BATCH_BYTES: Final = 256
"""A port delivers single bytes; the sign reader gets a line, or this much of one, at a time."""


class GuestConsole:
    """A guest's output on its way to the hub, and what its kernel's last words say.

    Args:
        hub: Gets all of it.
        noticed: Called on the vCPU's thread, not often, when a sign that asks for an action is
            new: the kernel hangs or halts.
    """

    def __init__(self, hub: ConsoleHub, noticed: Callable[[Signs], None]) -> None:
        self.hub = hub
        self._noticed = noticed
        self._lock = threading.Lock()
        self._reader = SignReader()
        self._unread = bytearray()
        self._told = (False, False)

    def feed(self, data: bytes) -> None:
        """Take what the guest printed. From any thread; never waits for a reader."""
        self.hub.feed(data)
        with self._lock:
            self._unread += data
            if b"\n" not in data and len(self._unread) < BATCH_BYTES:
                return
            self._reader.feed(self._unread)
            self._unread.clear()
            signs = self._reader.signs
            state = (signs.hung, signs.halting)
            if state == self._told:
                return
            self._told = state
        self._noticed(signs)

    @property
    def signs(self) -> Signs:
        """What the kernel's words have said so far; written on while the guest runs."""
        return self._reader.signs

    def finish(self) -> Signs:
        """The guest prints no more: everything that its words said. On the trio thread."""
        self.hub.finish()
        with self._lock:
            self._reader.feed(self._unread)
            self._unread.clear()
            self._reader.finish()
            return self._reader.signs

    def tail(self) -> tuple[str, ...]:
        """As `ConsoleRing.tail`."""
        return self.hub.tail()
