"""What a log is told of drivers that break rules."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice
    from microvm.errors import GuestError

log = logging.getLogger("microvm.virtio")


class FaultLog:
    """Tells of a driver's faults: each once, and only so many, since a guest can repeat them."""

    MAX_REPORTS: Final = 10

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        self._reports = 0

    def report(self, error: GuestError) -> None:
        """Log that the device rests, and why."""
        self._reports += 1
        if self._reports > self.MAX_REPORTS:
            return
        log.warning(
            "%s (virtio device %d) rests until its driver resets it: %s%s",
            type(self._device).__name__,
            self._device.device_id,
            # Its words: a handler that keeps the record would keep the traceback, and the memory.
            str(error),
            " Further faults are not logged." if self._reports == self.MAX_REPORTS else "",
        )
