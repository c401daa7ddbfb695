"""Power cuts: what a disk may hold after one, and whether the device kept its word.

`RecordingDisk` keeps a log: each operation on the disk, in the order in which the host saw them,
and between them what a `Ledger` notes for its guest: what was asked for, and what the guest has
been told is stable. `broken_promises` lets the power fail at each point of the log. If a flush had
returned by then, what was written before that flush began is there; of what was written since, any
part may be: each sector on its own, in any combination, but of each sector all or nothing. That is
what dm-log-writes replays to Linux's file systems, but not sampled: promises are about sectors, and
sectors are independent, so what each may hold is looked at whole. What a flush that failed was
about stays in doubt, also after flushes that succeed, until it is written again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import attrs

from microvm_devices.blk.layout import SECTOR_BYTES
from microvm_devices.blk.testing.disks import MemoryDisk

Content = bytes | None
"""What a sector holds; None is anything, after a discard."""
ZEROES: Final = bytes(SECTOR_BYTES)


@attrs.frozen
class Written:
    """The host was asked for this, by sector, and the call is about to return."""

    sectors: Mapping[int, Content]


@attrs.frozen
class Flushed:
    """A flush is about to return."""

    began: int | None = None
    """How many entries the log had when it began; None is all up to here."""


@attrs.frozen
class Lost:
    """A flush is about to fail: what was written before and was not stable never will be."""

    began: int
    """How many entries the log had when it began."""


@attrs.frozen
class Asked:
    """The guest is about to ask for this. Each sector's contents are numbered, zeros being 0."""

    sectors: Mapping[int, Content]


@attrs.frozen
class Promised:
    """The guest knows that, of these sectors, contents of this number or a later one are stable."""

    versions: Mapping[int, int]


Entry = Written | Flushed | Lost | Asked | Promised


class RecordingDisk(MemoryDisk):
    """A disk in memory that keeps a log.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int = 1 << 20) -> None:
        super().__init__(size)
        self.log: list[Entry] = []
        self.before: Callable[[], None] = lambda: None
        """Called before each operation, in whatever thread it is in: for a guest to look what it
        knows by then."""
        self.has_failed = False
        """Whether a flush has."""
        self._lock = threading.Lock()

    def note(self, entry: Entry) -> None:
        """Put something into the log."""
        with self._lock:
            self.log.append(entry)

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        self.before()
        data = b"".join(views)
        super().write([memoryview(data)], offset, length)
        sectors: dict[int, Content] = {
            (offset + at) // SECTOR_BYTES: data[at : at + SECTOR_BYTES]
            for at in range(0, length, SECTOR_BYTES)
        }
        self.note(Written(sectors))

    def discard(self, offset: int, length: int) -> None:
        self.before()
        super().discard(offset, length)
        self.note(Written(dict.fromkeys(sectors_of(offset, length))))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self.before()
        super().write_zeroes(offset, length, unmap=unmap)
        self.note(Written(dict.fromkeys(sectors_of(offset, length), ZEROES)))

    def flush(self) -> None:
        self.before()
        with self._lock:
            began = len(self.log)
        try:
            self.make_stable()
        except OSError:
            self.has_failed = True
            self.note(Lost(began))
            raise
        self.note(Flushed(began))

    def make_stable(self) -> None:
        """The flush itself; for tests in which it fails, or something comes in between."""
        super().flush()


def sectors_of(offset: int, length: int) -> Iterable[int]:
    """The sectors of a range of bytes."""
    return range(offset // SECTOR_BYTES, (offset + length) // SECTOR_BYTES)


class Ledger:
    """What a guest has asked for and was promised; kept in the disk's log.

    A guest that has two requests for one sector under way knows nothing of their order: don't.
    """

    def __init__(self, disk: RecordingDisk) -> None:
        self._disk = disk
        self._count: dict[int, int] = {}

    def ask(self, sectors: Mapping[int, Content]) -> Mapping[int, int]:
        """Note a request that is about to be made; returns the numbers of its contents."""
        self._disk.note(Asked(sectors))
        for sector in sectors:
            self._count[sector] = self._count.get(sector, 0) + 1
        return {sector: self._count[sector] for sector in sectors}

    def promised(self, versions: Mapping[int, int]) -> None:
        """Note what the guest has been told is stable."""
        self._disk.note(Promised(dict(versions)))


def broken_promises(log: Iterable[Entry]) -> list[str]:
    """Crashes after which a guest finds what it must not; none if the device is right."""
    found: dict[int, list[_Found]] = {}
    asked: dict[int, list[Content]] = {}
    floor: dict[int, int] = {}
    broken: list[str] = []
    lost = 0
    for at, entry in enumerate(log):
        looked_at: Iterable[int] = ()
        match entry:
            case Asked(sectors):
                for sector, content in sectors.items():
                    asked.setdefault(sector, [ZEROES]).append(content)
            case Written(sectors):
                for sector, content in sectors.items():
                    found.setdefault(sector, [_BLANK]).append(_Found(at, content))
                looked_at = sectors
            case Flushed(began):
                until = at if began is None else began
                found = {
                    sector: _stable(contents, lost, until) for sector, contents in found.items()
                }
            case Lost(began):
                lost = max(lost, began)
            case Promised(versions):
                for sector, version in versions.items():
                    floor[sector] = max(version, floor.get(sector, 0))
                looked_at = versions
        for sector in looked_at:
            allowed = asked.get(sector, [ZEROES])[floor.get(sector, 0) :]
            for held in found.get(sector, [_BLANK]):
                if held.content not in allowed and None not in allowed:
                    broken.append(
                        f"entry {at}, {entry}: sector {sector} may hold {held.content!r:.40}"
                    )
    return broken


@attrs.frozen
class _Found:
    """What a sector may hold after a power cut."""

    written_at: int
    """The place in the log."""
    content: Content


_BLANK: Final = _Found(-1, ZEROES)


def _stable(contents: list[_Found], lost: int, began: int) -> list[_Found]:
    """What of `contents` is left after a flush: the last that it is about, and later ones."""
    for place in range(len(contents) - 1, 0, -1):
        if lost <= contents[place].written_at < began:
            return contents[place:]
    return contents
