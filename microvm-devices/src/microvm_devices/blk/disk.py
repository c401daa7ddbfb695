"""`Disk`: what holds a guest's sectors. The device knows nothing else of the host.

Methods are called from several threads at once, one for each queue. They may block, but for
`read_cached`. Offsets and lengths are bytes; the device has checked that they lie within `size`,
and cuts what is large into pieces.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence


class Disk(ABC):
    """A fixed number of bytes that can be read, and written unless it is read-only.

    Everything raises `OSError` for what the host can't do; the guest gets an I/O error.
    """

    size: int
    """Bytes; a multiple of 512, and the same for as long as it is attached."""
    name: str
    """For messages."""

    @abstractmethod
    def read(self, views: Sequence[memoryview], offset: int, length: int) -> int:
        """Fill `views`, which hold `length` bytes.

        Returns:
            How many bytes there were: fewer than `length` only where the disk has lost its end.
        """

    def read_cached(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
        """As `read`, but at once or not at all. On the trio thread; never blocks, never raises.

        Returns:
            Whether all of it was read. If not, some of `views` may have been filled.
        """
        return False

    def will_read(self, ranges: Iterable[tuple[int, int]]) -> None:
        """These offsets and lengths will be read next, one after the other. A hint."""
        return

    @abstractmethod
    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        """Write all of `views`, which hold `length` bytes. On an error, any part of it is."""

    @abstractmethod
    def flush(self) -> None:
        """Make everything stable whose writing had returned before: it outlives a power cut."""

    @abstractmethod
    def discard(self, offset: int, length: int) -> None:
        """Nobody needs these bytes any more; what they are from now on is undefined."""

    @abstractmethod
    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make these bytes zero; with `unmap`, their space may be given back."""

    @abstractmethod
    def close(self) -> None:
        """Give it back. No other call is under way, and none follows."""


class FlushLatch:
    """Flushes, and once one has failed, fails every other.

    Linux reports a failed write-back to one fsync and may then forget the pages that it was about
    (fsync(2), ERRORS): that a later one succeeds says nothing of what was lost before. So the
    disk stays unsafe, and says so, until it is attached anew.

    Two flushes never overlap. The error goes to one of them only, and the other would report as
    stable what has just been lost.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._failed: tuple[int | None, str] | None = None
        """Its number and words: the error itself would keep the views of a guest's memory."""
        self._changed = False

    def changed(self) -> None:
        """Something was written: call it when that has returned."""
        self._changed = True

    def flush(self) -> None:
        """As `Disk.flush`.

        Raises:
            OSError: it failed, now or before.
        """
        with self._lock:
            if self._failed is not None:
                code, words = self._failed
                raise OSError(
                    code,
                    f"an earlier flush has failed ({words}), and what was written before it may "
                    "be lost; attach the disk anew",
                )
            self._changed = False
            try:
                self._disk.flush()
            except OSError as error:
                self._failed = error.errno, error.strerror or str(error)
                raise

    @property
    def unsettled(self) -> bool:
        """Whether a flush is due: something was written since the last one, and none has failed."""
        return self._changed and self._failed is None
