"""`FileSink`: a console into a file, byte for byte.

The writing is done in a thread, since a disk may take its time. Up to then bytes wait in the
reader's buffers, which are bounded. A disk that is full costs bytes and nothing else: it is tried
again with the next ones.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from microvm.abc.console import ConsoleSink
from microvm.output_file import open_output_file

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

log = logging.getLogger("microvm")

FULL: Final = b"\n[microvm: this file is full, and what follows is left out]\n"
_LABEL: Final = "console.path"


class FileSink(ConsoleSink):
    """Writes what the guest prints; nothing is typed.

    Args:
        path: Emptied if it is there, and its user's alone from then on (0600). No two machines
            share one; one that has ended, and whose disk hangs, has it until that is over. It may
            be a pipe or a terminal; while nobody reads that, bytes are dropped.
        max_bytes: The file's bound, the line that tells of it not counted.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max = max_bytes
        self._file: _File | None = None

    @property
    def path(self) -> str | None:
        """The file's."""
        return os.fspath(self._path)

    def counters(self) -> Mapping[str, int]:
        """As `ConsoleSink.counters`."""
        return {"dropped_bytes": self._file.dropped if self._file is not None else 0}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """As `ConsoleSink.lifespan`."""
        fd = open_output_file(self._path, _LABEL, special=True)
        self._file = _File(fd, self._max, os.fspath(self._path))
        try:
            yield
        finally:
            self._file.close()

    async def serve(self, console: HalfCloseableStream) -> None:
        """As `ConsoleSink.serve`."""
        assert self._file is not None
        async for chunk in console:
            # Abandoned when cancelled: a disk that hangs must not keep the machine.
            await trio.to_thread.run_sync(self._file.write, bytes(chunk), abandon_on_cancel=True)


class _File:
    """The open file. Written by one thread at a time; closed by the last to use it."""

    def __init__(self, fd: int, max_bytes: int, name: str) -> None:
        self.dropped = 0
        self._fd = fd
        self._left = max_bytes
        self._name = name
        self._lock = threading.Lock()
        self._closing = False
        self._told = False

    def write(self, data: bytes) -> None:
        """Write what there is room for, and count the rest."""
        with self._lock:
            if not self._closing:
                self._write(data)
        self._close_if_due()

    def close(self) -> None:
        """Close it, now or when a write that hangs has returned."""
        self._closing = True
        self._close_if_due()

    def _close_if_due(self) -> None:
        if self._closing and self._lock.acquire(blocking=False):
            try:
                fd, self._fd = self._fd, -1
                if fd >= 0:
                    os.close(fd)
            finally:
                self._lock.release()

    def _write(self, data: bytes) -> None:
        if not self._left:
            self.dropped += len(data)
            return
        wanted = memoryview(data)[: self._left]
        written = self._try(wanted)
        self._left -= written
        self.dropped += len(data) - written
        if not self._left:
            self._try(memoryview(FULL))

    def _try(self, data: memoryview) -> int:
        """Write; how many bytes the system took."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            if not self._told and not isinstance(error, BlockingIOError):
                self._told = True
                log.warning(
                    "The console file %s can't be written (%s); some of it is lost.",
                    self._name,
                    error.strerror,
                )
        return written
