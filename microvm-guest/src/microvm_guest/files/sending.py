"""`LocalSource`: a file or directory of the host's, as records for a guest.

Symlinks within it are sent as symlinks and never followed: each directory is opened within the one
that is open. What is no file, directory or symlink is never opened. Blocking, for a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from microvm.abc import CopyReport
from microvm_guest.protocol.records import (
    MAX_DEPTH,
    MAX_RECORD,
    Entry,
    Record,
    RecordKind,
)

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
_WITHIN = _OPEN | os.O_NOFOLLOW | os.O_NONBLOCK
_END = Record(RecordKind.END).encode()
_KINDS = {
    stat.S_IFREG: RecordKind.FILE,
    stat.S_IFDIR: RecordKind.DIRECTORY,
    stat.S_IFLNK: RecordKind.SYMLINK,
}


class LocalSource:
    """Gives what stands at a path of the host's, in pieces.

    Args:
        path: A file or directory, or a symlink to one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = 0
        self._bytes = 0
        self._skipped: list[str] = []
        self._records = self._all()

    def next_bytes(self, wanted: int) -> bytes:
        """About `wanted` bytes of records, or none at the end.

        Raises:
            OSError: something can't be read, or is no file or directory.
        """
        batch = bytearray()
        for raw in self._records:
            batch += raw
            if len(batch) >= wanted:
                break
        return bytes(batch)

    def close(self) -> None:
        """Close what is open."""
        self._records.close()

    @property
    def report(self) -> CopyReport:
        """What has been given so far."""
        return CopyReport(entries=self._entries, bytes=self._bytes, skipped=tuple(self._skipped))

    def _all(self) -> Generator[bytes, None, None]:
        with _opened(os.fspath(self._path), _OPEN | os.O_NONBLOCK) as fd:
            there = os.fstat(fd)
            if stat.S_IFMT(there.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                raise OSError(f"{self._path} is neither a file nor a directory.")
            yield from self._opened(fd, there, b"", 1)
            yield Record(RecordKind.DONE).encode()

    def _opened(self, fd: int, there: os.stat_result, name: bytes, depth: int) -> Iterator[bytes]:
        """A file or directory that is open, whole."""
        kind = _KINDS[stat.S_IFMT(there.st_mode)]
        self._entries += 1
        yield _entry(kind, there, name)
        if kind is RecordKind.FILE:
            while data := os.read(fd, MAX_RECORD):
                self._bytes += len(data)
                yield Record(RecordKind.DATA, data).encode()
        else:
            if depth > MAX_DEPTH:
                raise OSError(f"{self._path} has directories more than {MAX_DEPTH} deep.")
            for entry in sorted(os.listdir(fd)):
                yield from self._within(fd, os.fsencode(entry), depth + 1)
        yield _END

    def _within(self, directory: int, name: bytes, depth: int) -> Iterator[bytes]:
        try:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return  # it was removed meanwhile
        kind = _KINDS.get(stat.S_IFMT(there.st_mode))
        if kind is RecordKind.SYMLINK:
            self._entries += 1
            yield _entry(kind, there, name, os.readlink(name, dir_fd=directory))
        elif kind is None:
            self._skipped.append(os.fsdecode(name))
        else:
            with _opened(name, _WITHIN, directory) as fd:
                there = os.fstat(fd)  # it may be another one by now
                if stat.S_IFMT(there.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                    raise OSError(f"{os.fsdecode(name)!r} changed while it was copied.")
                yield from self._opened(fd, there, name, depth)


def _entry(kind: RecordKind, there: os.stat_result, name: bytes, target: bytes = b"") -> bytes:
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(there.st_mode),
        mtime_ns=there.st_mtime_ns,
        name=name,
        target=target,
    ).encode()


@contextmanager
def _opened(name: str | bytes, flags: int, directory: int | None = None) -> Iterator[int]:
    fd = os.open(name, flags, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
