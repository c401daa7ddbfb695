"""Looking over a user's kernel and initrd before anything is started with them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from microvm.boot.identify import HEADER_BYTES, KernelFormatError, identify_kernel, is_kernel
from microvm.errors import ImageError

BootFile = Literal["kernel", "initrd"]


def check_boot_file(path: Path, what: BootFile, *, mem_size_mib: int | None = None) -> None:
    """See that `path` is a regular, readable file that can be the machine's `what`.

    Reads a few KiB, never waits (a FIFO is refused, not opened), follows symbolic links. It is
    a courtesy, not a guard: the file may be another one when the backend opens it.

    Args:
        path: The file.
        what: What it is to be.
        mem_size_mib: The guest's memory; a file that does not fit into it is refused.

    Raises:
        ImageError: it is not; the message names the path and the reason.
    """
    descriptor = _open_regular(path, what)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise _unusable(path, what, "it is empty")
        if mem_size_mib is not None and size > mem_size_mib << 20:
            raise ImageError(
                f"The {what} {path} can't be used: its {size >> 20} MiB don't fit into the "
                f"guest's {mem_size_mib} MiB.",
                remedy="Give the guest more memory.",
            )
        if what == "kernel":
            identify_kernel(lambda at, length: _read_at(descriptor, at, length), size)
        elif is_kernel(_read_at(descriptor, 0, HEADER_BYTES)):
            raise _unusable(path, what, "it is a kernel or program, not an initramfs")
    except KernelFormatError as error:
        raise _unusable(path, what, str(error)) from None
    except OSError as error:
        raise _unusable(path, what, f"reading it failed ({error.strerror})") from error
    finally:
        os.close(descriptor)


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


def _read_at(descriptor: int, at: int, length: int) -> bytes:
    if not 0 <= at < 1 << 63:
        return b""
    return os.pread(descriptor, length, at)


def _unusable(path: Path, what: BootFile, reason: str) -> ImageError:
    remedy = (
        "Give an uncompressed ELF kernel (vmlinux) or a bzImage for x86_64."
        if what == "kernel"
        else "Give a cpio archive in the newc format, compressed or not."
    )
    return ImageError(f"The {what} {path} can't be used: {reason}.", remedy=remedy)
