"""What a transport counts of a device's two signals, for the machine's metrics."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.define(eq=False)
class SignalCounts:
    """Of one device, since the machine was made: all its runs and queues together.

    Counted by whoever rings, on one thread each, without a lock: to be read, not to be relied on.
    """

    notifications: int = 0
    """Of the driver's that woke the device; several rings may be one."""
    interrupts: int = 0
    """Of the device's, before the driver has merged any."""

    def as_mapping(self) -> Mapping[str, int]:
        """Both, by name."""
        return {"notifications": self.notifications, "interrupts": self.interrupts}
