"""`LocalTree`: what a guest sends, made beneath one name of the host's and nowhere else.

The guest is not trusted, and neither is what lies in the directory of the target. So:

* the target's directory is opened once; everything else is made relative to an open directory,
  by a name of one component, as something new (O_EXCL, mkdir), never through a symlink;
* all of it is made under a name of our own beside the target and renamed at the end, so the target
  is whole or as it was. A second entry of one name fails there, whichever its case;
* nothing that it says allocates memory: contents end when they end, and what there may be of
  entries, depth and bytes is bounded.

Blocking, for a thread.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Final

import attrs

from microvm.abc import CopyLimits, CopyReport
from microvm.console import visible_text
from microvm.errors import GuestError
from microvm_guest.protocol.frames import ProtocolViolation
from microvm_guest.protocol.records import (
    Entry,
    Record,
    RecordKind,
    decode_entry,
    is_one_name,
)

_ROOTS = frozenset({RecordKind.FILE, RecordKind.DIRECTORY})
"""What a copy may be of: whoever gets a file may read it without looking whether it is a link."""
_ENTRIES = _ROOTS | {RecordKind.SYMLINK}
_PERMISSIONS: Final = 0o777
"""Of a mode: no set-user-id, set-group-id or sticky bit comes out of a guest."""
_OWN: Final = stat.S_IRWXU
"""What the owner of a directory is always given: who gets it must be able to remove it."""
_LATEST_NS: Final = 2**33 * 10**9
"""A time beyond it, in the year 2242, is not set: file systems differ in what they take."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_SKIPPED: Final = 1000
"""Names of skipped entries that are told."""


@attrs.frozen
class _Open:
    """A directory or file that is being made."""

    fd: int
    mtime_ns: int
    is_file: bool


class LocalTree:
    """Makes one file or directory of a guest's records.

    Call `feed` with each record, then `commit`; or `abandon`, whatever has happened.

    Args:
        target: What it becomes.
        limits: How much it may be.

    Raises:
        OSError: the target's directory can't be opened, or the target is a directory with
            something in it.
    """

    def __init__(self, target: Path, limits: CopyLimits) -> None:
        self._limits = limits
        self._name = os.fsencode(target.name)
        if not is_one_name(self._name):
            raise IsADirectoryError(f"{target} is a directory: give the copy a name in it.")
        self._temporary = b".microvm-" + secrets.token_hex(8).encode()
        self._levels: list[_Open] = []
        self._begun = False
        self._done = False
        self._entries = 0
        self._bytes = 0
        self._skipped: list[str] = []
        self._skips = 0
        # the user's own path: symlinks on the way to it are theirs
        self._parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._check_free(target)
        except BaseException:
            os.close(self._parent)
            raise

    def _check_free(self, target: Path) -> None:
        """Find before the copy what rename(2) would find after it."""
        try:
            there = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(there.st_mode):
            with os.scandir(target) as entries:
                if next(entries, None) is not None:
                    raise FileExistsError(f"{target} is there, with something in it.")

    # --- records --------------------------------------------------------------------------

    def feed(self, record: Record) -> None:
        """Make what one record says.

        Raises:
            ProtocolViolation: no agent says that, or not there.
            GuestError: it is more than the limits allow.
            OSError: the host's file system refused.
        """
        if self._done:
            raise ProtocolViolation(f"a {record.kind.name} record after the end")
        inmost = self._levels[-1] if self._levels else None
        in_file = inmost is not None and inmost.is_file
        if record.kind is RecordKind.DATA and in_file:
            assert inmost is not None
            self._write(inmost.fd, record.payload)
        elif record.kind is RecordKind.END and inmost is not None and not record.payload:
            self._end()
        elif record.kind in (_ROOTS if inmost is None else _ENTRIES) and not in_file:
            if inmost is None and self._begun:
                raise ProtocolViolation(f"a second {record.kind.name} record")
            self._begin(decode_entry(record, root=inmost is None))
        elif record.kind is RecordKind.SKIPPED and inmost is not None and not in_file:
            self._skip(record.payload)
        elif record.kind is RecordKind.DONE and self._begun and inmost is None:
            self._done = True
        else:
            raise ProtocolViolation(f"a {record.kind.name} record where there can be none")

    def _count_entry(self) -> None:
        self._entries += 1
        if self._entries > self._limits.max_entries:
            raise self._too_much(f"{self._limits.max_entries} files", "max_entries")

    def _too_much(self, what: str, limit: str) -> GuestError:
        return GuestError(
            f"The guest sent more than {what}; nothing of it was kept.",
            remedy=f"Raise {limit} of CopyLimits if that is what you want.",
        )

    def _begin(self, entry: Entry) -> None:
        self._count_entry()
        inside = bool(self._levels)
        directory = self._levels[-1].fd if inside else self._parent
        name = entry.name if inside else self._temporary
        mode = entry.mode & _PERMISSIONS
        self._begun = True
        try:
            if entry.kind is RecordKind.SYMLINK:
                os.symlink(entry.target, name, dir_fd=directory)
                _set_time(name, entry.mtime_ns, directory)
                return
            if entry.kind is RecordKind.DIRECTORY:
                if len(self._levels) >= self._limits.max_depth:
                    raise self._too_much(
                        f"{self._limits.max_depth} directories within each other", "max_depth"
                    )
                os.mkdir(name, mode | _OWN, dir_fd=directory)
                fd = os.open(name, _DIRECTORY, dir_fd=directory)
            else:
                fd = os.open(name, _FILE, mode, dir_fd=directory)
        except FileExistsError:
            raise ProtocolViolation(f"two entries of one name, {visible_text(name)}") from None
        self._levels.append(_Open(fd, entry.mtime_ns, entry.kind is RecordKind.FILE))

    def _write(self, fd: int, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > self._limits.max_bytes:
            raise self._too_much(f"{self._limits.max_bytes} bytes", "max_bytes")
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                at += os.write(fd, view[at:])

    def _end(self) -> None:
        level = self._levels.pop()
        try:
            _set_time(level.fd, level.mtime_ns)
        finally:
            os.close(level.fd)

    def _skip(self, name: bytes) -> None:
        self._count_entry()
        if not is_one_name(name):
            raise ProtocolViolation(f"a SKIPPED record of name {name!r}")
        self._skips += 1
        if len(self._skipped) < _MAX_SKIPPED:
            self._skipped.append(visible_text(name))

    # --- the end --------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether all of it has come."""
        return self._done

    def commit(self) -> CopyReport:
        """Give it its name; `done` must be true.

        Raises:
            OSError: the target has become something that can't be replaced.
        """
        assert self._done
        os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        self._begun = False
        return CopyReport(
            entries=self._entries - self._skips,
            bytes=self._bytes,
            skipped=tuple(self._skipped),
        )

    def abandon(self) -> None:
        """Close what is open and remove what was not committed. May be called twice."""
        while self._levels:
            os.close(self._levels.pop().fd)
        if self._parent < 0:
            return
        try:
            if self._begun:
                self._remove_temporary()
        finally:
            os.close(self._parent)
            self._parent = -1

    def _remove_temporary(self) -> None:
        try:
            os.unlink(self._temporary, dir_fd=self._parent)
        except FileNotFoundError:
            pass
        except OSError:  # EISDIR; EPERM on systems that are not Linux
            shutil.rmtree(os.fsdecode(self._temporary), dir_fd=self._parent)


def _set_time(what: int | bytes, mtime_ns: int, directory: int | None = None) -> None:
    if not 0 < mtime_ns < _LATEST_NS:
        return
    times = (mtime_ns, mtime_ns)
    if directory is None:
        os.utime(what, ns=times)
    else:
        os.utime(what, ns=times, dir_fd=directory, follow_symlinks=False)
