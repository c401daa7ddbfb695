"""Power cuts: what a disk may hold after one, and whether the device kept its word.

`RecordingDisk` notes each operation on the disk in the order in which the host saw it, and, as the
test tells it, each answer that the guest has seen (`Op.note`). A `Crash` is a prefix of that log.
What was written before the last flush that had returned by then is there; of what was written
since, any part may be: each sector on its own, in any combination, but of each sector all or
nothing. (This is what dm-log-writes replays to Linux's file systems.)

The promise to check is the driver's view. `Crash.images` gives disks that may be found after the
crash; a test compares them with what the guest had been told was stable.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from microvm_devices.blk.layout import SECTOR_BYTES
from microvm_devices.blk.testing.disks import MemoryDisk

WRITE: Final = "write"
DISCARD: Final = "discard"
FLUSH: Final = "flush"
NOTE: Final = "note"


@attrs.frozen
class Op:
    """One entry of the log."""

    kind: str
    offset: int = 0
    data: bytes = b""
    """What was written, or zeros; of a discard, as many bytes as it covers."""
    note: object = None
    """What a test has put in: something that its guest knows from here on."""


class RecordingDisk(MemoryDisk):
    """A disk in memory that keeps a log. Its flushes end up in the log when they return."""

    def __init__(self, size: int = 1 << 20) -> None:
        super().__init__(size)
        self.log: list[Op] = []
        self._lock = threading.Lock()

    def note(self, what: object) -> None:
        """The guest knows something now."""
        with self._lock:
            self.log.append(Op(NOTE, note=what))

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        data = b"".join(views)
        with self._lock:
            super().write([memoryview(data)], offset, length)
            self.log.append(Op(WRITE, offset, data))

    def flush(self) -> None:
        with self._lock:
            super().flush()
            self.log.append(Op(FLUSH))

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            super().discard(offset, length)
            self.log.append(Op(DISCARD, offset, bytes(length)))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        with self._lock:
            super().write_zeroes(offset, length, unmap=unmap)
            self.log.append(Op(WRITE, offset, bytes(length)))

    def crashes(self) -> Iterator[Crash]:
        """A crash at each point of the log."""
        for end in range(len(self.log) + 1):
            yield Crash(size=self.size, log=tuple(self.log[:end]))


@attrs.frozen(kw_only=True)
class Crash:
    """The power fails when so much has happened."""

    size: int
    log: tuple[Op, ...]

    @property
    def notes(self) -> list[object]:
        """What the guest knew."""
        return [op.note for op in self.log if op.kind == NOTE]

    def choices(self) -> dict[int, list[bytes | None]]:
        """For each sector that is not zero for sure, what may be found in it.

        The last one is what would be there without the crash. None is anything at all: it was
        discarded.
        """
        found: dict[int, list[bytes | None]] = {}
        for op in self.log:
            if op.kind == FLUSH:
                found = {sector: values[-1:] for sector, values in found.items()}
            elif op.kind in (WRITE, DISCARD):
                for at in range(0, len(op.data), SECTOR_BYTES):
                    sector = (op.offset + at) // SECTOR_BYTES
                    data = op.data[at : at + SECTOR_BYTES] if op.kind == WRITE else None
                    found.setdefault(sector, [bytes(SECTOR_BYTES)]).append(data)
        return found

    def images(self, count: int, rng: random.Random) -> Iterator[dict[int, bytes | None]]:
        """Disks that may be found, by sector; one that is not named is zero.

        The one that kept least, the one that kept all, and `count` others.
        """
        choices = self.choices()
        yield {sector: values[0] for sector, values in choices.items()}
        yield {sector: values[-1] for sector, values in choices.items()}
        for _ in range(count):
            yield {sector: rng.choice(values) for sector, values in choices.items()}
