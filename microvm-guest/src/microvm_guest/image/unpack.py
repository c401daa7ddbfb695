"""Putting packages' files into a folder of ours.

What a name may be is decided by `tree`; here it is only done: each file is made anew in a folder
that nobody else can write, below directories that this module made itself. Symbolic links come
last, so there is none to follow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from microvm_guest.image.cpio import Directory, File, Symlink
from microvm_guest.image.errors import BuildError
from microvm_guest.image.finishing import finish
from microvm_guest.image.process import guarded
from microvm_guest.image.tree import HardLink, Stored, Tree, TreeError
from microvm_guest.image.untar import Content, TarError, members, reader

if TYPE_CHECKING:
    from microvm_guest.image.packages import Package
    from microvm_guest.image.progress import Progress
    from microvm_guest.image.untar import Member

MAX_CONTENT_BYTES: Final = 8 << 30
"""Of all files in all packages of a disk, those that are left out as well."""
MAX_MEMBERS: Final = 1_000_000
"""Of all packages of a disk."""


def unpack(
    packages: Iterable[Package],
    extra: Iterable[File],
    folder: Path,
    tree: Tree,
    progress: Progress,
    *,
    max_bytes: int = MAX_CONTENT_BYTES,
    max_members: int = MAX_MEMBERS,
) -> None:
    """Fill an empty folder and its tree with packages, the user's files, and what scripts make.

    Args:
        packages: In the order in which they say what directories are like.
        extra: Files of the user's.
        folder: Nobody else may be able to enter it: set-user-ID programs will lie in it.
        tree: Gets every entry.
        progress: Told after each package.
        max_bytes: Bound on all files' contents, as their headers tell it beforehand.
        max_members: Bound on what packages list.

    Raises:
        BuildError: a package is damaged, or contradicts another; the message names it.
    """
    listed = list(packages)
    bounds = _Bounds(max_bytes, max_members)
    for number, package in enumerate(listed):
        progress.update("unpacking the packages", number, len(listed))
        try:
            _unpack_one(package, folder, tree, bounds)
        except (TarError, TreeError) as error:
            raise BuildError(
                f"{package.name} {package.version} can't be unpacked: {error}.",
                remedy="Leave it out, or remove what it fetched (microvm image prune) and retry.",
            ) from error
    try:
        for file in extra:
            tree.put(Stored(file.name, file.mode, len(file.data)), "the files given")
            _write(folder, file.name, iter([file.data]))
        made = finish(tree, lambda name: (folder / name).read_bytes())
        for file in made:
            tree.put(Stored(file.name, file.mode, len(file.data)), "microvm")
            _write(folder, file.name, iter([file.data]))
    except TreeError as error:
        raise BuildError(
            f"The disk can't be put together: {error}.", remedy="Give the file another name."
        ) from error


def settle(folder: Path, tree: Tree) -> None:
    """Make what is left, all but files: directories, links, and everything's mode."""
    entries = list(tree.entries())
    for entry in entries:
        if isinstance(entry, Directory):
            (folder / entry.name).mkdir(parents=True, exist_ok=True)
    for entry in entries:
        if isinstance(entry, HardLink):
            os.link(folder / entry.target, folder / entry.name)
    for entry in entries:
        if isinstance(entry, Stored):
            (folder / entry.name).chmod(entry.mode)
        elif isinstance(entry, Symlink):
            (folder / entry.name).symlink_to(entry.target)
    # Last and from the bottom: one that may not be written would keep others out.
    for entry in reversed(entries):
        if isinstance(entry, Directory):
            (folder / entry.name).chmod(entry.mode)
    folder.chmod(0o755)


class _Bounds:
    """What may still come: all of it has to be read past, whether it is kept or not."""

    def __init__(self, max_bytes: int, max_members: int) -> None:
        self._bytes_left, self._max_bytes = max_bytes, max_bytes
        self._members_left, self._max_members = max_members, max_members

    def count(self, member: Member) -> None:
        self._bytes_left -= member.size
        self._members_left -= 1
        if self._bytes_left < 0:
            raise TreeError(f"the packages hold more than {self._max_bytes >> 20} MiB")
        if self._members_left < 0:
            raise TreeError(f"the packages list more than {self._max_members} files")


def _unpack_one(package: Package, folder: Path, tree: Tree, bounds: _Bounds) -> None:
    # The guard between us and dpkg-deb costs a fork; a builder that dies leaves nothing behind.
    with guarded(["dpkg-deb", "--fsys-tarfile", str(package.deb)]) as process:
        assert process.stdout is not None
        for member, content in members(reader(process.stdout)):
            bounds.count(member)
            file = tree.add(member, package.name)
            if file is not None:
                _write(folder, file.name, content)


def _write(folder: Path, name: str, content: Content) -> None:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(place, flags, 0o600), "wb") as file:
        for piece in content:
            file.write(piece)
