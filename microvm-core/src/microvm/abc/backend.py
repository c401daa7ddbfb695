"""What a backend says of itself: its capabilities as data, and whether it can run here."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs


class Capability(enum.StrEnum):
    """What a backend can do, declared as data and checked before boot."""

    OWN_KERNEL = "own-kernel"
    """Boots the kernel and initrd it is given."""
    VIRTIO_DEVICES = "virtio-devices"
    """Takes our virtio devices (which ones: `BackendFactory.virtio_ids`)."""
    OWN_CHANNELS = "own-channels"
    """Brings its own way to guest ports, in place of a vsock device."""
    PAUSE = "pause"
    POWER_BUTTON = "power-button"
    """The guest can be asked to end itself by its firmware's button, without an agent."""
    CONSOLE = "console"
    """The guest's console can be read."""
    EXIT_COUNTS = "exit-counts"
    """Counts VM exits by kind."""


@attrs.frozen(kw_only=True)
class ProbeReport:
    """Whether a backend can run here and now, in words a person can act on."""

    backend: str
    usable: bool
    reason: str
    """One sentence: why it is usable, or why not."""
    remedy: str | None = None
    """What to do when it is not."""
    accelerated: bool = False
    """Whether guest code runs on the CPU itself rather than in software."""
    details: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    """Facts found on the way (versions, paths), for `doctor`."""
