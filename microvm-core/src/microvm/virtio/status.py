"""Bits of the device status field (virtio 1.2, 2.1 Device Status Field)."""

from __future__ import annotations

import enum


class DeviceStatus(enum.IntFlag):
    """How far the driver has come with the device. Writing 0 resets the device."""

    ACKNOWLEDGE = 1
    """The guest has found the device."""
    DRIVER = 2
    """The guest knows how to drive it."""
    DRIVER_OK = 4
    """The driver is ready: the device may use its queues."""
    FEATURES_OK = 8
    """Feature negotiation is over."""
    NEEDS_RESET = 64
    """The device met an error that only a reset mends (2.1.1, DEVICE_NEEDS_RESET)."""
    FAILED = 128
    """The driver has given up."""
