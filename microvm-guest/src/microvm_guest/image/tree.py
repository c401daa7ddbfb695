"""What will be on a disk: names, kinds and modes, merged from many packages. Pure.

Nothing here or in what follows it walks a path that a package chose: every name is plain and
relative, every parent of a name is a directory of the tree itself, and symbolic links are put on
the disk last. So a link can't lead a later file out of the tree.

Everything belongs to root. Few files in Debian don't (``/usr/bin/wall`` is of group ``tty``), and
a set-user-ID or set-group-ID bit for somebody else would be one for root: it is dropped.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import attrs

from microvm_guest.image.cpio import CpioError, Directory, Symlink

if TYPE_CHECKING:
    from microvm_guest.image.untar import Member

MAX_ENTRIES: Final = 500_000
MERGED: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Links to the folders of the same name below ``usr`` (Debian Policy 4.6, 9.1.1, "merged-/usr")."""
TRIMMED: Final = tuple(f"usr/share/{name}/" for name in ("doc", "info", "lintian", "locale", "man"))
"""What no program of a guest reads; licences stay (``usr/share/doc/*/copyright``)."""
_LICENCE: Final = re.compile(r"usr/share/doc/[^/]+/copyright")


class TreeError(ValueError):
    """A member that can't be in a tree, or not beside another one."""


@attrs.frozen
class Stored:
    """A regular file whose content lies elsewhere."""

    name: str
    mode: int
    size: int
    links: int = 1
    """How many names it has."""


@attrs.frozen
class HardLink:
    """One more name for a file."""

    name: str
    target: str


Entry = Directory | Symlink | Stored | HardLink


class Tree:
    """Grows by `add`; `entries` is the whole, in the order in which a disk can be filled."""

    def __init__(self, *, trim: bool = True) -> None:
        self._trim = trim
        self._entries: dict[str, Entry] = {}
        self._owners: dict[str, str] = {}
        self._implied: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> Entry | None:
        """The entry of that name."""
        return self._entries.get(name)

    def names_below(self, folder: str) -> list[str]:
        """Names of files below a folder, sorted."""
        start = f"{folder}/"
        found = (n for n, e in self._entries.items() if n.startswith(start))
        return sorted(name for name in found if isinstance(self._entries[name], Stored))

    def add(self, member: Member, package: str) -> Stored | None:
        """Take a package's member; return the file to store if it is one.

        Raises:
            TreeError: it has a bad name, is a device, or contradicts what is there.
        """
        name = place_of(member.name)
        if name is None or self._is_trimmed(name):
            return None
        mode = safe_mode(member)
        match member.kind:
            case "directory":
                self._add_directory(Directory(name, mode=mode), package)
                return None
            case "symlink":
                self.put(_checked(Symlink, name, _printable(member.target)), package)
                return None
            case "hardlink":
                self._add_hard_link(name, place_of(member.target), package)
                return None
            case "file":
                file = Stored(_plain(name), mode, member.size)
                self.put(file, package)
                return file
        raise TreeError(f"{member.name!r} is a {member.kind}")

    def put(self, entry: Entry, package: str) -> None:
        """Take an entry under its own name.

        Raises:
            TreeError: there is another of that name, or a parent of it is no directory.
        """
        name = entry.name
        there = self._entries.get(name)
        if there is not None:
            if isinstance(entry, Symlink) and there == entry:
                return
            raise TreeError(f"{name!r} is in {self._owners[name]} as well")
        if len(self._entries) >= MAX_ENTRIES:
            raise TreeError(f"there would be more than {MAX_ENTRIES} files")
        parts = name.split("/")
        for depth in range(1, len(parts)):
            self._imply("/".join(parts[:depth]), name, package)
        self._entries[name], self._owners[name] = entry, package

    def entries(self) -> Iterator[Entry]:
        """Directories, parents first; then files; then hard links; then symbolic links."""
        ordered = [self._entries[name] for name in sorted(self._entries)]
        for kind in (Directory, Stored, HardLink, Symlink):
            yield from (entry for entry in ordered if isinstance(entry, kind))

    def _imply(self, parent: str, name: str, package: str) -> None:
        there = self._entries.get(parent)
        if there is None:
            self._entries[parent], self._owners[parent] = Directory(parent), package
            self._implied.add(parent)
        elif not isinstance(there, Directory):
            owner = self._owners[parent]
            raise TreeError(f"{name!r} lies below {parent!r}, which {owner} has as no directory")

    def _add_directory(self, directory: Directory, package: str) -> None:
        there = self._entries.get(directory.name)
        if isinstance(there, Directory):
            # As dpkg does it: who brings a directory first says what it is like.
            if directory.name in self._implied:
                self._implied.discard(directory.name)
                self._entries[directory.name] = directory
            return
        self.put(directory, package)

    def _add_hard_link(self, name: str, target: str | None, package: str) -> None:
        file = self._entries.get(target or "")
        if isinstance(file, HardLink):
            file = self._entries[file.target]
        if not isinstance(file, Stored):
            raise TreeError(f"{name!r} is a link to {target!r}, which is no file")
        self.put(HardLink(_plain(name), file.name), package)
        self._entries[file.name] = attrs.evolve(file, links=file.links + 1)

    def _is_trimmed(self, name: str) -> bool:
        return self._trim and name.startswith(TRIMMED) and not _LICENCE.fullmatch(name)


def place_of(name: str) -> str | None:
    """Where a package's ``./bin/x`` goes: ``usr/bin/x``.

    None for the archive's root, and for the links of a merged-/usr system: every tree has them.

    Raises:
        TreeError: it is not a plain path below the root.
    """
    plain = name.removeprefix("./").rstrip("/")
    if plain in ("", "."):
        return None
    plain = _plain(plain)
    top, _, rest = plain.partition("/")
    if top in MERGED:
        return f"usr/{plain}" if rest else None
    return plain


def _plain(name: str) -> str:
    _checked(Directory, _printable(name))
    return name


def _printable(text: str) -> str:
    """A name or a target on one line: they go into lists and commands of other programs."""
    if any(ord(letter) < 0x20 or letter == "\x7f" for letter in text):
        raise TreeError(f"{text!r} has control characters in it")
    return text


def _checked(kind: type, *values: str) -> Entry:
    try:
        made: Entry = kind(*values)
    except CpioError as error:
        raise TreeError(str(error)) from None
    return made


def safe_mode(member: Member) -> int:
    """The mode when all belongs to root. Pure."""
    mode = member.mode
    if member.kind == "directory":
        # Set-group-ID there is about whom new files belong to.
        return mode & 0o1777
    if member.uid != 0:
        mode &= ~stat.S_ISUID
    if member.gid != 0:
        mode &= ~stat.S_ISGID
    return mode


def merged_links(names: Iterable[str]) -> list[Symlink]:
    """``bin`` -> ``usr/bin`` and its like, for those that have something to point at."""
    tops = {name.split("/")[1] for name in names if name.startswith("usr/")}
    return [Symlink(top, f"usr/{top}") for top in MERGED if top in tops]
