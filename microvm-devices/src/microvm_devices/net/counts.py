"""What a network device counts, from when it was made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from microvm_devices.net.packet import Fault

log = logging.getLogger(__name__)


@attrs.define(kw_only=True, eq=False)
class Counts:
    """One set for all queues. "Sent" and "received" are the guest's words."""

    sent_frames: int = 0
    sent_bytes: int = 0
    """Ethernet headers are in it, virtio's not."""
    sent_dropped: int = 0
    """Frames of the driver's that were wrong, or had nowhere to go."""
    received_frames: int = 0
    received_bytes: int = 0
    received_dropped: int = 0
    """Frames for which the driver's buffers were too small, or that it does not take."""
    errors: int = 0
    """Frames and commands of the driver's that were wrong."""
    throttled: int = 0
    """How often a rate limit made the device wait."""
    link_down: int = 0

    def fault(self, fault: Fault) -> None:
        """Count a frame that the driver sent in vain; the first one is logged."""
        if not self.errors:
            log.info("A frame of the guest's is dropped (later ones are counted): %s", fault.value)
        self.errors += 1
        self.sent_dropped += 1

    def as_mapping(self) -> Mapping[str, int]:
        """By name."""
        requests = self.sent_frames + self.received_frames
        return {"requests": requests, **attrs.asdict(self)}
