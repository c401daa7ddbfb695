"""`Executor`: what a request does to the disk. Synchronous.

`try_now` is for the trio thread, `execute` and `settle` for a thread that may block. A request's
outcome is put into it; telling the driver is the caller's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from microvm_devices.blk import limits
from microvm_devices.blk.layout import (
    ID_BYTES,
    S_IOERR,
    S_OK,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)
from microvm_devices.blk.request import PENDING, Request

if TYPE_CHECKING:
    from microvm_devices.blk.disk import Disk, FlushLatch

log = logging.getLogger(__name__)


class RunEnds(Exception):
    """The run is to end: what was begun is left as it is, to be begun again in the next one."""


class Executor:
    """Serves requests that were judged to be possible.

    Args:
        disk: The sectors.
        latch: Its flushes.
        device_id: What GET_ID answers: at most 20 bytes.
        through: Whether writes must be stable before they are reported.
    """

    def __init__(
        self, disk: Disk, latch: FlushLatch, device_id: bytes, through: Callable[[], bool]
    ) -> None:
        self._disk = disk
        self._latch = latch
        self._device_id = device_id.ljust(ID_BYTES, b"\0")
        self._through = through
        self._told: set[tuple[str, int | None]] = set()

    def try_now(self, request: Request) -> bool:
        """Serve what needs no waiting. On the trio thread.

        Returns:
            Whether the request is decided.
        """
        if request.status != PENDING:
            return True
        type_ = request.type
        if type_ == T_IN:
            length = request.length
            if length > limits.INLINE_BYTES:
                return False
            if length and not self._disk.read_cached(request.data, request.offset, length):
                return False
            request.written = length
            request.status = S_OK
            return True
        if type_ == T_GET_ID:
            self._give_id(request)
            return True
        return False

    def _give_id(self, request: Request) -> None:
        answer = self._device_id[: request.length]
        done = 0
        for view in request.data:
            part = answer[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        request.written = done
        request.status = S_OK

    def execute(self, requests: Sequence[Request], ends: Callable[[], bool]) -> None:
        """Serve requests one after the other. May block.

        Args:
            requests: In the order in which they came.
            ends: Whether the run is to end. Then the rest is left `PENDING`: of the sequence a
                part at the end, so that its chains can be given back to the queue.
        """
        reads = [r for r in requests if r.type == T_IN and r.status == PENDING]
        if len(reads) > 1:
            self._disk.will_read((r.offset, r.length) for r in reads)
        changing: list[Request] = []
        for request in requests:
            if request.status != PENDING:
                continue
            if ends():
                break
            try:
                if request.type == T_IN:
                    self._read(request, ends)
                elif request.type == T_FLUSH:
                    self._latch.flush()
                    request.status = S_OK
                elif request.type == T_GET_ID:
                    self._give_id(request)
                else:
                    # Noted before it is tried: an error may come when a part is written.
                    changing.append(request)
                    self._change(request, ends)
            except RunEnds:
                break
            except OSError as error:
                request.status = S_IOERR
                self._tell(request, error)
        if changing and self._through():
            self._make_stable(changing)

    def _read(self, request: Request, ends: Callable[[], bool]) -> None:
        for views, offset, length in pieces(request, ends):
            done = self._disk.read(views, offset, length)
            request.written += done
            if done < length:
                raise OSError(None, "the file has become shorter than the disk")
        request.status = S_OK

    def _change(self, request: Request, ends: Callable[[], bool]) -> None:
        disk = self._disk
        try:
            if request.type == T_OUT:
                for views, offset, length in pieces(request, ends):
                    disk.write(views, offset, length)
                request.status = S_OK
                return
            for segment in request.segments:
                for offset, length in _steps(segment.offset, segment.length, ends):
                    if request.type == T_DISCARD:
                        disk.discard(offset, length)
                    else:
                        disk.write_zeroes(offset, length, unmap=segment.unmap)
            request.status = S_OK
        finally:
            self._latch.changed()

    def _make_stable(self, changing: Iterable[Request]) -> None:
        """One flush for all of them, before any is reported."""
        try:
            self._latch.flush()
        except OSError as error:
            for request in changing:
                if request.status == S_OK:
                    request.status = S_IOERR
                    self._tell(request, error)

    def _tell(self, request: Request, error: OSError) -> None:
        """Log the first error of its kind; later ones are counted."""
        what = _NAMES[request.type]
        kind = (what, error.errno)
        if kind not in self._told:
            self._told.add(kind)
            log.error(
                "%s: %s at byte %d failed, and the guest gets an I/O error: %s. "
                "Further errors of this kind are counted, not logged.",
                self._disk.name,
                what,
                request.offset,
                error.strerror or error,
            )


_NAMES = {
    T_IN: "a read",
    T_OUT: "a write",
    T_FLUSH: "a flush",
    T_DISCARD: "a discard",
    T_WRITE_ZEROES: "a write of zeros",
}


def pieces(
    request: Request, ends: Callable[[], bool]
) -> Iterator[tuple[Sequence[memoryview], int, int]]:
    """A request's data, cut where one call would move too much: views, offset, length.

    Raises:
        RunEnds: between two of them, the run is to end.
    """
    if not request.length:
        return
    if request.length <= limits.PIECE_BYTES:
        yield request.data, request.offset, request.length
        return
    offset = request.offset
    piece: list[memoryview] = []
    size = 0
    for view in request.data:
        at = 0
        while at < len(view):
            part = view[at : at + limits.PIECE_BYTES - size]
            piece.append(part)
            size += len(part)
            at += len(part)
            if size == limits.PIECE_BYTES:
                yield piece, offset, size
                if ends():
                    raise RunEnds
                offset += size
                piece, size = [], 0
    if size:
        yield piece, offset, size


def _steps(offset: int, length: int, ends: Callable[[], bool]) -> Iterator[tuple[int, int]]:
    while length:
        step = min(length, limits.ZEROES_PIECE_BYTES)
        yield offset, step
        offset += step
        length -= step
        if length and ends():
            raise RunEnds
