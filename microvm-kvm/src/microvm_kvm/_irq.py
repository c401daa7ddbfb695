"""The two signals between a VM and its devices: eventfds that KVM raises and watches.

Neither costs an exit: a device's `trigger` is one write that KVM turns into an interrupt (irqfd),
and a guest's store to a doorbell is one addition in the kernel that wakes trio's poll (ioeventfd).
"""

from __future__ import annotations

import contextlib
import os
import threading

from microvm.abc import GuestDoorbell, IrqLine
from microvm.errors import BackendError


class EventFd:
    """An eventfd that can be signalled and closed from any two threads.

    The lock keeps a number from being written to that has been closed, and may be another file's
    by then: the write releases the GIL.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """The descriptor; -1 when it is closed."""
        return self._number

    def signal(self) -> None:
        """Add one to the counter; one that is full says as much already. Closed: nothing."""
        with self._lock:
            if self._number >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self._number, 1)

    def close(self) -> None:
        """Close it, once."""
        with self._lock:
            number, self._number = self._number, -1
        if number >= 0:
            os.close(number)


class KvmIrqLine(IrqLine):
    """An edge on an interrupt pin: KVM raises and lowers it for each write."""

    def __init__(self, event: EventFd) -> None:
        self._event = event

    def trigger(self) -> None:
        self._event.signal()


class KvmDoorbell(GuestDoorbell):
    """Rung in the kernel. Rings before the first `wait` are kept."""

    def __init__(self, event: EventFd) -> None:
        self._event = event

    def ring(self) -> None:
        self._event.signal()

    async def wait(self) -> None:
        """As `Doorbell.wait`.

        Raises:
            BackendError: the VM is closed.
        """
        number = self._event.fileno()
        if number < 0:
            raise BackendError("The doorbell's VM is closed.")
        # Not before: it brings trio, and a probe in a program without it would wait 100 ms for it.
        from microvm.virtio.eventfd import wait_eventfd

        try:
            await wait_eventfd(number)
        except OSError as error:
            raise BackendError(f"A doorbell failed: {error.strerror}.") from error
