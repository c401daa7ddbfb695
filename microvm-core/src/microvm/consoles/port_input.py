"""`PortInput`: what is typed for a serial port, until the port takes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import trio

    from microvm.consoles.hub import Post

PENDING_BYTES: Final = 4096
"""What may wait for the port; who types more waits too."""
OFFERED_BYTES: Final = 64
"""At once: more than any port holds, so that it asks for the rest when it has room again."""


class PortInput:
    """A bounded buffer between the trio thread and a port of the guest's.

    Args:
        post: The way to the trio thread.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._feed: Callable[[bytes], int] | None = None
        self._room: trio.Event | None = None

    def connect(self, feed: Callable[[bytes], int]) -> None:
        """Where the bytes go: takes as many as it has room for, and says how many."""
        self._feed = feed

    async def send(self, data: bytes) -> None:
        """Have bytes typed; waits while the guest takes none. On the trio thread."""
        import trio

        await trio.lowlevel.checkpoint()
        left = memoryview(data)
        while left:
            with self._lock:
                taken = left[: PENDING_BYTES - len(self._pending)]
                self._pending += taken
                left = left[len(taken) :]
                self._offer()
                room = None
                if left:
                    if self._room is None:
                        self._room = trio.Event()
                    room = self._room
            if room is not None:
                await room.wait()

    def on_room(self) -> None:
        """The port has taken what it was given. On a vCPU's thread."""
        with self._lock:
            self._offer()

    def _offer(self) -> None:
        """`_lock` is held; the port's own is taken within it, never around it."""
        if self._pending and self._feed is not None:
            taken = self._feed(bytes(self._pending[:OFFERED_BYTES]))
            del self._pending[:taken]
            # For nothing, several who wait would wake each other without end.
            if taken and self._room is not None:
                room, self._room = self._room, None
                self._post(room.set)
