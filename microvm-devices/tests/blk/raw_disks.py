"""Raw disks that are opened for a test, and buffers for what they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microvm.config import DriveConfig
from microvm_devices.blk.raw_disk import RawDisk, open_raw_disk

SIZE = 1 << 20


@contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[RawDisk]:
    disk = open_raw_disk(DriveConfig(path=path, read_only=read_only))
    try:
        yield disk
    finally:
        disk.close()


def views(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for length in lengths]
