"""For tests of virtio-blk, and of what uses it: a guest's driver, disks that misbehave, crashes."""

from __future__ import annotations

from microvm_devices.blk.testing.crash import Ledger, RecordingDisk, broken_promises
from microvm_devices.blk.testing.disks import FailingDisk, MemoryDisk
from microvm_devices.blk.testing.guest import ALL_FEATURES, Answer, GuestBlk, pack_segments

__all__ = [
    "ALL_FEATURES",
    "Answer",
    "FailingDisk",
    "GuestBlk",
    "Ledger",
    "MemoryDisk",
    "RecordingDisk",
    "broken_promises",
    "pack_segments",
]
