"""For tests of virtio-blk, and of what uses it: a guest's driver, disks that misbehave, crashes."""

from __future__ import annotations

from microvm_devices.blk.testing.crash import Crash, Op, RecordingDisk
from microvm_devices.blk.testing.disks import FailingDisk, MemoryDisk
from microvm_devices.blk.testing.guest import Answer, GuestBlk

__all__ = ["Answer", "Crash", "FailingDisk", "GuestBlk", "MemoryDisk", "Op", "RecordingDisk"]
