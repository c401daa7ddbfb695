"""Disks in memory, with faults on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from microvm_devices.blk.disk import Disk

if TYPE_CHECKING:
    from microvm.config import DriveConfig


class MemoryDisk(Disk):
    """A disk of zeros in memory.

    Args:
        size: Bytes.
        cached: Whether `read_cached` can answer.
    """

    def __init__(self, size: int = 1 << 20, *, cached: bool = False) -> None:
        self.size = size
        self.name = "a disk in memory"
        self.data = bytearray(size)
        self.cached = cached
        self.flushes = 0
        self.closed = False

    def opener(self) -> Callable[[DriveConfig], Disk]:
        """For `BlkDevice`: opens this disk, whatever the drive."""
        return lambda config: self

    def read(self, views: Sequence[memoryview], offset: int, length: int) -> int:
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)
        return length

    def read_cached(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
        return self.cached and self.read(views, offset, length) == length

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = b"\xdd" * length

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self.data[offset : offset + length] = bytes(length)

    def close(self) -> None:
        self.closed = True


class FailingDisk(MemoryDisk):
    """A disk that fails some of its calls.

    `fails` is called with the name of each method before it is tried, and returns the errno with
    which it fails, or None.
    """

    def __init__(self, fails: Callable[[str], int | None], size: int = 1 << 20) -> None:
        super().__init__(size)
        self.fails = fails

    def _attempt(self, name: str) -> None:
        code = self.fails(name)
        if code is not None:
            raise OSError(code, os.strerror(code))

    def read(self, views: Sequence[memoryview], offset: int, length: int) -> int:
        self._attempt("read")
        return super().read(views, offset, length)

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        self._attempt("write")
        super().write(views, offset, length)

    def flush(self) -> None:
        self._attempt("flush")
        super().flush()

    def discard(self, offset: int, length: int) -> None:
        self._attempt("discard")
        super().discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._attempt("write_zeroes")
        super().write_zeroes(offset, length, unmap=unmap)
