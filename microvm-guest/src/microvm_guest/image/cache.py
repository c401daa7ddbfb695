"""The cache of kernels and images on disk: lock, work folders, putting things in place whole.

A build happens in a folder below ``work`` and is renamed into place after everything in it has
reached the disk, so that what can be seen is complete. One lock guards all changes; it is a
`flock`, which the kernel drops with its holder, however that ends. Who holds the lock knows that
whatever lies in ``work`` belongs to the dead, and removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from microvm_guest.image.errors import CacheError
from microvm_guest.image.layout import CACHE_VARIABLE, CacheLayout

log = logging.getLogger(__name__)

_ELSEWHERE = f"Make room or another place for it: set {CACHE_VARIABLE} to a directory of yours."
_REMEDIES = {
    errno.ENOSPC: "The disk is full: free about 2 GiB (microvm image prune), or set "
    f"{CACHE_VARIABLE} to a directory on a larger one.",
    errno.EDQUOT: f"Your disk quota is used up: set {CACHE_VARIABLE} to another directory.",
    errno.EROFS: f"It is on a read-only file system: set {CACHE_VARIABLE} to a writable one.",
    errno.EACCES: f"You may not write there: set {CACHE_VARIABLE} to a directory of yours.",
    errno.EPERM: f"You may not write there: set {CACHE_VARIABLE} to a directory of yours.",
    errno.ENOTDIR: "A part of that path is not a directory: remove it, or set "
    f"{CACHE_VARIABLE} to another one.",
}


@contextmanager
def explaining(layout: CacheLayout) -> Iterator[None]:
    """Turn an `OSError` on the way into a `CacheError` that says what to do."""
    try:
        yield
    except OSError as error:
        number = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno
        raise CacheError(
            f"The image cache {layout.root} can't be used: {error}.",
            remedy=_REMEDIES.get(number or 0, _ELSEWHERE),
        ) from error


@attrs.frozen
class Cache:
    """A cache whose lock is held. Made by `open_cache`; every change goes through it."""

    layout: CacheLayout

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A new, empty folder on the cache's file system, gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="build-", dir=self.layout.work))
        try:
            yield folder
        finally:
            remove_tree(folder)

    def publish(self, finished: Path, place: Path) -> None:
        """Put a finished folder in its place, whole; what was there before goes."""
        for path in sorted(finished.iterdir()):
            path.chmod(0o444)
            _sync(path)
        finished.chmod(0o755)
        _sync(finished)
        if place.exists() or place.is_symlink():
            doomed = Path(tempfile.mkdtemp(prefix="old-", dir=self.layout.work))
            place.rename(doomed / "old")
            finished.rename(place)
            remove_tree(doomed)
        else:
            finished.rename(place)
        _sync(place.parent)

    def point(self, recipe: str, image_id: str) -> None:
        """Make `image_id` the image to boot for `recipe`."""
        self._write_line(self.layout.pointer(recipe), image_id)

    def name(self, name: str, disk_id: str) -> None:
        """Make `name` mean the disk of that id, and no other any more."""
        self._write_line(self.layout.names / name, disk_id)

    def _write_line(self, place: Path, text: str) -> None:
        # In place only when complete: readers take no lock.
        handle, name = tempfile.mkstemp(dir=self.layout.work)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).rename(place)
        _sync(place.parent)


@contextmanager
def open_cache(layout: CacheLayout, waiting: Callable[[str], None]) -> Iterator[Cache]:
    """Hold the cache's lock; make its folders first if need be.

    Args:
        layout: The cache's paths.
        waiting: Called once with a sentence when another process holds the lock.

    Raises:
        CacheError: it can't be made or written, or it is not safe to use.
    """
    with explaining(layout):
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(layout.root)
        lock = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with explaining(layout):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(f"Another process builds in {layout.root}: waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            for folder in (
                layout.pointers,
                layout.images,
                layout.kernels,
                layout.disks,
                layout.names,
                layout.downloads,
            ):
                folder.mkdir(exist_ok=True)
            if layout.work.exists():
                remove_tree(layout.work)
            layout.work.mkdir()
        with explaining(layout):
            yield Cache(layout)
    finally:
        os.close(lock)


def _check_owner(root: Path) -> None:
    """Refuse a cache that others can write: they would choose what we boot."""
    found = root.stat()
    if found.st_mode & 0o002:
        raise CacheError(
            f"Everybody can write to the image cache {root}.",
            remedy=f"Take that away (chmod o-w {root}), or set {CACHE_VARIABLE} to another.",
        )
    me = os.geteuid()
    if found.st_uid in (me, 0):
        return
    if me == 0:
        # Usual in containers that get a user's folder mounted.
        log.warning("The image cache %s belongs to user %d.", root, found.st_uid)
        return
    raise CacheError(
        f"The image cache {root} belongs to user {found.st_uid}.",
        remedy=f"Set {CACHE_VARIABLE} to a directory of yours.",
    )


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; what a dying compiler writes meanwhile goes at next start."""
    for _ in range(3):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
    log.warning("%s could not be removed whole.", path)


def require_space(layout: CacheLayout, needed_bytes: int, what: str = "building a kernel") -> None:
    """Fail now rather than minutes later, and say for what.

    Raises:
        CacheError: less than `needed_bytes` are free.
    """
    free = shutil.disk_usage(layout.root).free
    if free < needed_bytes:
        raise CacheError(
            f"The image cache {layout.root} has {free >> 20} MiB free; {what} takes "
            f"{needed_bytes >> 20} MiB.",
            remedy=_REMEDIES[errno.ENOSPC],
        )


def facts_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as manifests hold them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def canonical_json(value: object) -> bytes:
    """The same value, the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def link_or_copy(source: Path, target: Path) -> None:
    """One more name for a finished file, or a copy where the file system has no links."""
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
