"""`RawDisk`: a file or a block device of the host, byte for byte.

Opened once, looked at through the descriptor, and kept: what happens to its name afterwards is of
no matter. Symbolic links are followed, since the path is the user's own and /dev/disk/by-id is made
of them; what is opened in the end must be a regular file or a block device. Its contents are never
looked at: they are the guest's, and one that writes the header of another format into its first
sector has written a header, and nothing else.

Never mapped into memory: where a file is shorter than it was, a mapping would end the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from microvm.errors import ImageError
from microvm.file_lock import lock_file
from microvm_devices.blk._fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate
from microvm_devices.blk.disk import Disk
from microvm_devices.blk.layout import SECTOR_BYTES

if TYPE_CHECKING:
    from microvm.config import DriveConfig

_IOV_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024) if hasattr(os, "sysconf") else 16
_RWF_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
"""What a file system says that can't do it at all. EINVAL is about one request: a block device of
4 KiB sectors says it to a range of 512-byte ones, and takes the next that fits."""
_ZEROES: Final = memoryview(bytes(1 << 20))
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}

Transfer = Callable[[int, Sequence[memoryview], int], int]
"""`os.preadv` or `os.pwritev`."""
Allocate = Callable[[int, int, int, int], None]


class RawDisk(Disk):
    """See the module.

    Args:
        fd: Open for reading, and for writing unless `read_only`. Closed by `close`.
        size: Bytes.
        name: The path, for messages.
        allocate: fallocate(2).
    """

    def __init__(self, fd: int, *, size: int, name: str, allocate: Allocate = fallocate) -> None:
        self._fd = fd
        self.size = size
        self.name = name
        self._allocate = allocate
        # What this file system can't do is found out by trying, once.
        self._can_nowait = bool(_RWF_NOWAIT)
        self._modes = {PUNCH_HOLE, ZERO_RANGE}

    def read(self, views: Sequence[memoryview], offset: int, length: int) -> int:
        return _transfer(os.preadv, self._fd, views, offset, length)

    def read_cached(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
        """From the page cache, where the file system has RWF_NOWAIT (preadv2(2)).

        ext4, xfs, btrfs and block devices have it, tmpfs has not.
        """
        if not self._can_nowait or len(views) > _IOV_MAX:
            return False
        try:
            return os.preadv(self._fd, views, offset, _RWF_NOWAIT) == length
        except BlockingIOError:
            return False
        except OSError as error:
            # Any other error comes again, and is told of, where the read may block.
            self._can_nowait = error.errno not in _UNSUPPORTED
            return False

    def will_read(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Have the kernel begin with all of them at once, where it takes such advice."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # the read will tell
                for offset, length in ranges:
                    os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        self._require_room(offset, length)
        if _transfer(os.pwritev, self._fd, views, offset, length) < length:
            raise OSError(errno.EIO, "it took no more bytes")

    def flush(self) -> None:
        """Of size and place all is written that is needed to read the data back (fdatasync(2)).

        macOS: F_FULLFSYNC, always, since fsync there ends in the drive's volatile cache.
        """
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is not None:
            fcntl.fcntl(self._fd, full)
        else:
            os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the space back, where the file system can; else nothing, which is allowed too."""
        self._require_room(offset, length)
        self._reallocate(PUNCH_HOLE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._require_room(offset, length)
        if unmap and self._reallocate(PUNCH_HOLE, offset, length):
            return
        if self._reallocate(ZERO_RANGE, offset, length):
            return
        while length:
            piece = min(length, len(_ZEROES))
            self.write([_ZEROES[:piece]], offset, piece)
            offset += piece
            length -= piece

    def close(self) -> None:
        os.close(self._fd)

    def _reallocate(self, mode: int, offset: int, length: int) -> bool:
        """Have the file system do it, and say whether it could."""
        if mode not in self._modes:
            return False
        try:
            self._allocate(self._fd, mode | KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                self._modes.discard(mode)
            elif error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _require_room(self, offset: int, length: int) -> None:
        """A file that was made shorter is not made longer again: its owner has cut it off."""
        if offset + length > os.lseek(self._fd, 0, os.SEEK_END):
            raise OSError(errno.EIO, "the file has become shorter than the disk")


def _transfer(
    call: Transfer, fd: int, views: Sequence[memoryview], offset: int, length: int
) -> int:
    """Move all of it, in as many calls as that takes; less only where the file ends."""
    if len(views) <= _IOV_MAX:
        done = call(fd, views, offset)
        if done == length or not done:
            return done
    else:
        done = 0
    left = list(views)
    skipped = 0
    while done < length:
        while skipped + len(left[0]) <= done:
            skipped += len(left.pop(0))
        first = left[0][done - skipped :]
        count = call(fd, [first, *left[1:_IOV_MAX]], offset + done)
        if not count:
            break
        done += count
    return done


# --- opening -----------------------------------------------------------------------------------


def open_raw_disk(config: DriveConfig) -> RawDisk:
    """Open and lock a drive. Never waits: a FIFO is refused.

    Raises:
        ImageError: it can't be used; says why, and what to do.
    """
    path = config.path
    flags = os.O_RDONLY if config.read_only else os.O_RDWR
    try:
        mode = os.stat(path).st_mode
        _require_kind(mode, path)
        if stat.S_ISBLK(mode) and not config.read_only and hasattr(os, "O_EXCL"):
            # open(2): of a block device that is mounted, EBUSY.
            flags |= os.O_EXCL
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _unusable(path, error, read_only=config.read_only) from error
    try:
        # It may have become something else in between.
        mode = os.fstat(fd).st_mode
        _require_kind(mode, path)
        size = os.lseek(fd, 0, os.SEEK_END)
        _require_size(size, path)
        if not lock_file(fd, path, exclusive=not config.read_only):
            raise _in_use(path, read_only=config.read_only)
        return RawDisk(fd, size=size, name=str(path))
    except BaseException:
        os.close(fd)
        raise


def check_drive(config: DriveConfig) -> None:
    """Look whether a drive can be used, without opening it. `open_raw_disk` has the last word.

    Raises:
        ImageError: it can't.
    """
    path = config.path
    try:
        status = os.stat(path)
        _require_kind(status.st_mode, path)
        if stat.S_ISREG(status.st_mode):
            _require_size(status.st_size, path)
        if not os.access(path, os.R_OK if config.read_only else os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        raise _unusable(path, error, read_only=config.read_only) from error


def _require_kind(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ImageError(
            f"The disk {path} can't be used: it is {kind}.",
            remedy="Give a raw image, that is a regular file, or a block device.",
        )


def _require_size(size: int, path: Path) -> None:
    if not size:
        raise ImageError(
            f"The disk {path} can't be used: it is empty.",
            remedy=f"Give it a size, such as: truncate -s 1G '{path}'",
        )
    if size % SECTOR_BYTES:
        whole = -(-size // SECTOR_BYTES) * SECTOR_BYTES
        raise ImageError(
            f"The disk {path} can't be used: its {size} bytes are no whole number of sectors of "
            f"{SECTOR_BYTES}, and a guest would not see the last ones.",
            remedy=f"Add zeros to its end: truncate -s {whole} '{path}'",
        )


def _in_use(path: Path, *, read_only: bool) -> ImageError:
    others = "writes to" if read_only else "uses"
    return ImageError(
        f"The disk {path} is in use: another machine or program {others} it.",
        remedy="Stop the other one, or give this machine a copy. "
        "Machines that all have it read-only can share it.",
    )


def _unusable(path: Path, error: OSError | ValueError, *, read_only: bool) -> ImageError:
    code = error.errno if isinstance(error, OSError) else None
    reason = error.strerror if isinstance(error, OSError) else str(error)
    remedy = None
    if code == errno.ENOENT:
        reason = "there is no such file"
        remedy = f"Make one, such as: truncate -s 1G '{path}'"
    elif code in {errno.EACCES, errno.EPERM, errno.EROFS} and not read_only:
        remedy = "Make it writable for this user, or attach it read-only."
    elif code in {errno.EACCES, errno.EPERM}:
        remedy = "Make it readable for this user."
    elif code == errno.EBUSY:
        reason = "it is in use, by another machine or by the host itself as a file system"
        remedy = "Stop or unmount that, or attach it read-only."
    return ImageError(f"The disk {path} can't be used: {reason}.", remedy=remedy)
