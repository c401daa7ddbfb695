"""What is to be sent, in order, by one task.

Callers append whole frames and never touch the stream: a caller that is cancelled can't leave
half a frame behind, and letting go of a command needs no await.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio.abc import SendStream

ROOM_BYTES = 256 * 1024
"""Above this much unsent, `room` waits. Frames that must go (a kill) are added all the same."""


class Outbox:
    """A queue of bytes with one sender."""

    def __init__(self) -> None:
        self._unsent = bytearray()
        self._sending = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._wake = trio.Event()
        self._closed = False

    def put(self, raw: bytes) -> None:
        """Append bytes; dropped once nobody can send them."""
        if raw and not self._closed:
            self._unsent += raw
            self._wake.set()

    async def room(self) -> None:
        """Wait until little is unsent, so that who produces much is slowed down. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while len(self._unsent) + self._sending > ROOM_BYTES and not self._closed:
            await self._lot.park()

    def close(self) -> None:
        """Send nothing more; nobody waits for room any more."""
        self._closed = True
        self._unsent.clear()
        self._lot.unpark_all()
        self._wake.set()

    async def pump(self, stream: SendStream) -> None:
        """Send until closed or the stream breaks; that it broke is for its reader to notice.

        What is queued together is sent together: HELLO and the first RUN are one write.
        """
        try:
            while not self._closed:
                await self._wake.wait()
                self._wake = trio.Event()
                raw, self._unsent = self._unsent, bytearray()
                self._sending = len(raw)
                if raw:
                    await stream.send_all(raw)
                self._sending = 0
                self._lot.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.close()
