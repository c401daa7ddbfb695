"""A finished disk made of packages: finding it, and copying it to where it may be written."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from microvm_guest.image.errors import BuildError, ImageDamaged, ImageNotBuilt
from microvm_guest.image.images import check_size, read_manifest
from microvm_guest.image.layout import cache_layout

if TYPE_CHECKING:
    from microvm_guest.image.layout import CacheLayout

DISK_MANIFEST: Final = "disk.json"
MAX_DISK_MANIFEST_BYTES: Final = 1 << 20
REBUILD_DISK: Final = "Build it again with --force."
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FICLONE: Final = 0x4004_9409
"""ioctl_ficlone(2)."""
_PIECE_BYTES: Final = 1 << 22


@attrs.frozen(kw_only=True)
class GuestDisk:
    """A file system with packages on it, in the cache."""

    id: str
    """First sixteen hex digits of the manifest's hash: equal content, equal id."""
    path: Path
    """The raw image. It is shared by all who asked for the same: attach it read-only, or a copy."""
    format: str
    """``erofs``, ``squashfs`` or ``ext4``."""
    manifest: Mapping[str, Any] = attrs.field(repr=False, hash=False)

    @property
    def size_bytes(self) -> int:
        """Of the image; an ext4's is sparse."""
        return int(self.manifest["files"][self.path.name]["size"])

    @property
    def packages(self) -> Mapping[str, str]:
        """Name -> version of all that is on it."""
        return {name: facts["version"] for name, facts in self.manifest["packages"].items()}

    def copy_to(self, place: Path) -> Path:
        """Make a copy that may be written; at once where the file system can share blocks.

        Raises:
            BuildError: something is in that place.
        """
        with self.path.open("rb") as source:
            try:
                target = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except FileExistsError:
                raise BuildError(
                    f"{place} is there already.", remedy="Remove it, or give another place."
                ) from None
            try:
                _clone(source.fileno(), target)
            except BaseException:
                with suppress(OSError):
                    place.unlink()
                raise
            finally:
                os.close(target)
        return place


def find_disk(name: str, layout: CacheLayout | None = None) -> GuestDisk:
    """The disk that a name was given to.

    Raises:
        ImageNotBuilt: there is none of that name.
        ImageDamaged: its files are missing, or have another size than they were built with.
    """
    cache = cache_layout() if layout is None else layout
    disk_id = find_id(name, cache)
    if disk_id is None:
        raise ImageNotBuilt(
            f"There is no disk called {name} (looked in {cache.root}).",
            remedy=f"Build it: microvm image build --packages LIST --name {name}",
        )
    return load_disk(cache.disks / disk_id)


def find_id(name: str, layout: CacheLayout) -> str | None:
    """The id of the disk that a name means, if it means one.

    Raises:
        BuildError: it can't be a name.
    """
    return read_line(layout.names / check_name(name))


def check_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        BuildError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise BuildError(
            f"{name!r} can't be the name of a disk.",
            remedy="Give at most 64 small letters, digits, dots, dashes and underscores.",
        )
    return name


def read_line(path: Path) -> str | None:
    """The id in a pointer file; None without one."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.isalnum() else None


def load_disk(path: Path) -> GuestDisk:
    """Read a disk's manifest and see that its file is there in full size.

    Raises:
        ImageDamaged: it is not.
    """
    manifest = read_manifest(path / DISK_MANIFEST, MAX_DISK_MANIFEST_BYTES)
    try:
        kind, recipe = manifest["filesystem"], manifest["recipe"]
        ((name, facts),) = manifest["files"].items()
        size = int(facts["size"])
        [str(facts["version"]) for facts in manifest["packages"].values()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageDamaged(f"{path / DISK_MANIFEST} lacks {error}.", remedy=REBUILD_DISK) from error
    if name != f"disk.{kind}" or not isinstance(recipe, str):
        raise ImageDamaged(f"{path / DISK_MANIFEST} is damaged.", remedy=REBUILD_DISK)
    check_size(path / name, size)
    return GuestDisk(id=path.name, path=path / name, format=kind, manifest=manifest)


def whole_disks(layout: CacheLayout) -> list[GuestDisk]:
    """Every whole disk in the cache; damaged ones are passed over, and so built again."""
    found = []
    for path in sorted(layout.disks.glob("*")):
        with suppress(ImageDamaged):
            found.append(load_disk(path))
    return found


def disk_names(layout: CacheLayout) -> dict[str, list[str]]:
    """Disk id -> the names it has."""
    names: dict[str, list[str]] = {}
    for path in sorted(layout.names.glob("*")):
        if (disk_id := read_line(path)) is not None:
            names.setdefault(disk_id, []).append(path.name)
    return names


def _clone(source: int, target: int) -> None:
    """Share the blocks, or copy what is no hole."""
    with suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return
    size = os.fstat(source).st_size
    os.truncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole to the end
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            piece = os.pread(source, min(_PIECE_BYTES, end - at), at)
            if not piece:
                raise ImageDamaged("A disk in the cache became shorter.", remedy=REBUILD_DISK)
            at += os.pwrite(target, piece, at)
