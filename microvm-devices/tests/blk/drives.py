"""A device over a disk in memory, and what an image on the host holds."""

from pathlib import Path

from microvm.config import DriveConfig
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.testing import MemoryDisk

DRIVE = DriveConfig(path="/a/disk")


def device_on(disk: MemoryDisk, config: DriveConfig = DRIVE) -> BlkDevice:
    return BlkDevice(config, disk.opener())


def contents(path: Path) -> bytes:
    return path.read_bytes()
