"""Device type numbers (virtio 1.2, 5 Device Types)."""

from __future__ import annotations

import enum


class DeviceType(enum.IntEnum):
    """The device types that a microVM has a use for, and the reserved 0 of an empty slot."""

    INVALID = 0
    NET = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5
    SCSI_HOST = 8
    NINE_P = 9
    RPROC_SERIAL = 11
    GPU = 16
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    IOMMU = 23
    MEM = 24
    SOUND = 25
    FS = 26
    PMEM = 27
    RPMB = 28
    SCMI = 32
    I2C = 34
    WATCHDOG = 35
    CAN = 36
    GPIO = 41
