"""Descriptors that came with vhost-user messages, and the two signals made of them.

A ring's kick and call are eventfds (a counter of eight bytes; eventfd(2)). A descriptor belongs
to the session from the moment it is received: its `close` may be called often, and works once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

from microvm.abc import Doorbell, IrqLine
from microvm.errors import BackendError
from microvm.virtio.eventfd import wait_eventfd

if TYPE_CHECKING:
    from microvm.virtio.counts import SignalCounts
    from microvm.virtio.vhost_user.plan import Handle, Ring

_ONE = (1).to_bytes(8, "little")


class ReceivedFd:
    """A file descriptor that a front end sent us."""

    def __init__(self, number: int) -> None:
        self._number: int | None = number

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            ValueError: it is closed.
        """
        if self._number is None:
            raise ValueError("The descriptor is closed.")
        return self._number

    def close(self) -> None:
        """Close it, once."""
        number, self._number = self._number, None
        if number is not None:
            # Whatever close reports (EIO of a remote file), the descriptor is gone.
            with contextlib.suppress(OSError):
                os.close(number)

    def prepare_signal(self) -> None:
        """Make sure that signalling and waiting can't block or spin.

        Raises:
            BackendError: it is not an eventfd.
        """
        # An anonymous inode has no file type. A regular file can't be waited for, and a pipe
        # whose other end is closed would wake us for ever.
        if stat.S_IFMT(os.fstat(self.fileno()).st_mode):
            raise BackendError("The vhost-user front end sent a ring something but an eventfd.")
        os.set_blocking(self.fileno(), False)

    def send(self, data: bytes) -> None:
        """Send a short message to a socket, or drop it if nobody reads.

        Also if the buffer is full: who has not read so many like it learns nothing by one more.
        """
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fileno())) as peer:
            peer.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def signal(self) -> None:
        """Add one to an eventfd's counter; a counter that is full says as much already."""
        with contextlib.suppress(OSError):
            os.write(self.fileno(), _ONE)


class KickDoorbell(Doorbell):
    """Rings when the front end, or the kernel on its behalf, adds to the kick eventfd."""

    def __init__(self, kick: Handle) -> None:
        self._kick = kick

    async def wait(self) -> None:
        """As `Doorbell.wait`.

        Raises:
            BackendError: the kick descriptor does not work.
        """
        number = self._kick.fileno()
        try:
            await wait_eventfd(number)
        except OSError as error:
            raise BackendError(f"A ring's kick descriptor failed: {error.strerror}.") from error


class CallLine(IrqLine):
    """Adds to the ring's call eventfd, whichever it is now: it may be replaced at any time."""

    def __init__(self, ring: Ring, counts: SignalCounts) -> None:
        self._ring = ring
        self._counts = counts

    def trigger(self) -> None:
        """As `IrqLine.trigger`. Without a call descriptor the driver polls."""
        self._counts.interrupts += 1
        if self._ring.call is not None:
            self._ring.call.signal()
