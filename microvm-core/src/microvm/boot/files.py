"""A user's kernel and initrd as files: opened once, looked over, read into guest memory."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import attrs

from microvm.boot.identify import identify_kernel, is_kernel
from microvm.boot.reading import HEAD_BYTES, DoesNotFit, UnusableFile
from microvm.boot.setup_header import HEADER_BYTES
from microvm.errors import ImageError

BootFile = Literal["kernel", "initrd"]


@attrs.frozen(kw_only=True)
class OpenBootFile:
    """A boot file that `open_boot_file` has opened."""

    descriptor: int
    size: int
    """When it was opened, and not 0. It may change."""

    def read_at(self, at: int, length: int) -> bytes:
        """The bytes there, fewer where the file ends."""
        if not 0 <= at < 1 << 63:
            return b""
        return os.pread(self.descriptor, length, at)

    def read_into(self, at: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `at` on, without another copy of them.

        Raises:
            UnusableFile: the file ends before.
        """
        while len(view):
            count = os.preadv(self.descriptor, [view], at)
            if not count:
                raise UnusableFile("it became shorter while it was read")
            view, at = view[count:], at + count


@contextlib.contextmanager
def open_boot_file(path: Path, what: BootFile) -> Iterator[OpenBootFile]:
    """Open the machine's `what`, and close it when the block is left.

    Never waits: a FIFO is refused, not opened. Follows symbolic links. What the block finds wrong
    with the file (`UnusableFile`, `OSError`) comes out as an `ImageError` that names the path.

    Raises:
        ImageError: it is missing, unreadable, empty or no regular file.
    """
    descriptor = _open_regular(path, what)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise UnusableFile("it is empty")
        yield OpenBootFile(descriptor=descriptor, size=size)
    except UnusableFile as error:
        raise _unusable(path, what, str(error), error.remedy) from None
    except OSError as error:
        raise _unusable(path, what, f"reading it failed ({error.strerror})") from error
    finally:
        os.close(descriptor)


def kernel_head(path: Path) -> bytes:
    """The beginning of a kernel: as much as the `microvm_boot_protocol` hook sees.

    Raises:
        ImageError: as `open_boot_file`.
    """
    with open_boot_file(path, "kernel") as file:
        return file.read_at(0, HEAD_BYTES)


def check_boot_file(path: Path, what: BootFile, *, mem_size_mib: int | None = None) -> None:
    """See that `path` is a regular, readable file that can be the machine's `what`.

    Reads a few KiB. It is a courtesy, not a guard: the file may be another one when the backend
    opens it.

    Args:
        path: The file.
        what: What it is to be.
        mem_size_mib: The guest's memory; a file that does not fit into it is refused.

    Raises:
        ImageError: it is not; the message names the path and the reason.
    """
    with open_boot_file(path, what) as file:
        if mem_size_mib is not None and file.size > mem_size_mib << 20:
            raise DoesNotFit(
                f"its {file.size >> 20} MiB don't fit into the guest's {mem_size_mib} MiB"
            )
        if what == "kernel":
            identify_kernel(file.read_at, file.size)
        elif is_kernel(file.read_at(0, HEADER_BYTES)):
            raise UnusableFile("it is a kernel or program, not an initramfs")


def _open_regular(path: Path, what: BootFile) -> int:
    """A descriptor of a regular file. Nothing else is opened: devices may do things then."""
    try:
        _require_regular(os.stat(path).st_mode, path, what)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _unusable(path, what, "there is no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _unusable(path, what, f"it can't be opened ({reason})") from error
    try:
        # It may have become something else in between.
        _require_regular(os.fstat(descriptor).st_mode, path, what)
    except ImageError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(mode: int, path: Path, what: BootFile) -> None:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if not stat.S_ISREG(mode):
        kind = kinds.get(stat.S_IFMT(mode), "something else")
        raise _unusable(path, what, f"it is {kind}, not a regular file")


def _unusable(path: Path, what: BootFile, reason: str, remedy: str | None = None) -> ImageError:
    wanted = (
        "Give an uncompressed ELF kernel (vmlinux) or a bzImage for x86_64."
        if what == "kernel"
        else "Give a cpio archive in the newc format, compressed or not."
    )
    return ImageError(f"The {what} {path} can't be used: {reason}.", remedy=remedy or wanted)
