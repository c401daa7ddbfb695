"""Writing a cpio archive in the "newc" format, the one Linux unpacks as initramfs. Pure.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst, "initramfs buffer
format". An entry is a header of 110 ASCII bytes (magic ``070701`` and thirteen fields of eight
hex digits), the name with its NUL byte, padding to 4, the data, padding to 4. The archive ends
with an entry named ``TRAILER!!!``.

The same entries give the same bytes: sorted by name, every time 0, owner root, inodes counted.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator

import attrs

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
MAX_FILE_BYTES = 0xFFFF_FFFF
MAX_NAME_BYTES = 4095
"""PATH_MAX without the NUL byte; the kernel refuses longer names."""

_PLAIN_NAME = re.compile(r"[^/\0]+(/[^/\0]+)*")


class CpioError(ValueError):
    """An entry that can't be in an archive, or not safely."""


def _check_name(_entry: object, _field: object, name: str) -> None:
    """Relative, inside the archive, and not the mark of its end."""
    if not _PLAIN_NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
        raise CpioError(f"{name!r} is not a plain relative path.")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise CpioError(f"The name {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes.")
    if name == TRAILER:
        raise CpioError(f"The name {TRAILER} ends an archive.")


def _check_mode(_entry: object, _field: object, mode: int) -> None:
    if not 0 <= mode <= 0o7777:
        raise CpioError(f"{mode:#o} is not a file mode.")


@attrs.frozen
class Directory:
    """A directory."""

    name: str = attrs.field(validator=_check_name)
    mode: int = attrs.field(default=0o755, validator=_check_mode, kw_only=True)


@attrs.frozen
class File:
    """A regular file."""

    name: str = attrs.field(validator=_check_name)
    data: bytes = attrs.field(repr=False)
    mode: int = attrs.field(default=0o644, validator=_check_mode, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if len(self.data) > MAX_FILE_BYTES:
            raise CpioError(f"{self.name!r} is larger than the format's 4 GiB.")


@attrs.frozen
class Symlink:
    """A symbolic link. Where it points is the guest's affair: nothing follows it here."""

    name: str = attrs.field(validator=_check_name)
    target: str = attrs.field()

    @target.validator
    def _check_target(self, _field: object, target: str) -> None:
        if not target or "\0" in target or len(target.encode()) > MAX_NAME_BYTES:
            raise CpioError(f"{self.name!r} can't point at {target[:40]!r}.")


@attrs.frozen
class CharDevice:
    """A character device node."""

    name: str = attrs.field(validator=_check_name)
    major: int
    minor: int
    mode: int = attrs.field(default=0o600, validator=_check_mode, kw_only=True)


Entry = Directory | File | Symlink | CharDevice


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive that holds `entries`, with the directories they need.

    Raises:
        CpioError: a name is given twice, or lies below something that is not a directory.
    """
    by_name: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in by_name:
            raise CpioError(f"{entry.name!r} is given twice.")
        by_name[entry.name] = entry
    for name in list(by_name):
        for parent in _parents(name):
            if not isinstance(by_name.setdefault(parent, Directory(parent)), Directory):
                raise CpioError(f"{name!r} lies below {parent!r}, which is not a directory.")
    parts: list[bytes] = []
    # A name sorts after those of its parents: they are its prefixes.
    for inode, name in enumerate(sorted(by_name), start=1):
        parts.extend(_encode(by_name[name], inode))
    parts.extend(_record(TRAILER, 0, 0, b"", nlink=1))
    return b"".join(parts)


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _encode(entry: Entry, inode: int) -> list[bytes]:
    match entry:
        case Directory():
            return _record(entry.name, inode, stat.S_IFDIR | entry.mode, b"", nlink=2)
        case File():
            return _record(entry.name, inode, stat.S_IFREG | entry.mode, entry.data)
        case Symlink():
            return _record(entry.name, inode, stat.S_IFLNK | 0o777, entry.target.encode())
        case CharDevice():
            device = (entry.major, entry.minor)
            return _record(entry.name, inode, stat.S_IFCHR | entry.mode, b"", device=device)


def _record(
    name: str,
    inode: int,
    mode: int,
    data: bytes,
    *,
    nlink: int = 1,
    device: tuple[int, int] = (0, 0),
) -> list[bytes]:
    encoded = name.encode() + b"\0"
    fields = (
        inode,
        mode,
        0,  # uid
        0,  # gid
        nlink,
        0,  # mtime
        len(data),
        0,  # device the file was on, major and minor
        0,
        *device,
        len(encoded),
        0,  # checksum: not used by this magic
    )
    header = MAGIC + b"".join(b"%08X" % field for field in fields)
    return [header, encoded, _padding(len(header) + len(encoded)), data, _padding(len(data))]


def _padding(length: int) -> bytes:
    return bytes(-length % 4)
