"""Making a file system image of a folder, always the same bytes from the same content.

Times are one constant, the owner is root, identifiers come from the content's recipe, order is by
name. An ext4 image is filled by debugfs(8), file by file: ``mke2fs -d`` copies owners and change
times from the host, so that its result would depend on who builds, and when. Nothing is mounted,
and nothing needs root.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from microvm_guest.image.cpio import Directory, Symlink
from microvm_guest.image.errors import BuildError
from microvm_guest.image.process import guarded, lines, run
from microvm_guest.image.requirements import DISK_PROGRAMS, find_program
from microvm_guest.image.tree import Entry, HardLink, Stored

if TYPE_CHECKING:
    from microvm_guest.image.progress import Progress

EPOCH: Final = 1_577_836_800
"""The time of every file: 2020-01-01, UTC. Zero is no time to e2fsprogs, and none to zip."""
MIB: Final = 1 << 20
EXT4_BLOCK: Final = 4096
EXT4_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,"
    "large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)
"""Spelled out, since /etc/mke2fs.conf differs from host to host. Every kernel of today has them."""
EXT4_SPARE: Final = 1.2, 64
"""Factor and MiB on top of the content, when no size is asked for."""
_VERSION: Final = re.compile(r"\d+\.\d+[\w.]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_QUIET: Final = ("debugfs", "Allocated inode:")
_MAX_COMMAND_BYTES: Final = 1000
"""debugfs reads BUFSIZ bytes of a line, 1024 with musl, and takes the rest for a new command."""


@attrs.frozen(kw_only=True)
class Content:
    """What goes into an image."""

    folder: Path
    """Holds every entry under its name."""
    entries: Sequence[Entry] = attrs.field(repr=False)
    identity: str
    """32 hex digits, the image's UUID."""
    size_mib: int | None = None
    """Of the whole file system; only for one that can be written."""

    @property
    def uuid(self) -> str:
        """The identity as e2fsprogs and erofs-utils take it."""
        text = self.identity
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:32]))


def make(kind: str, content: Content, output: Path, progress: Progress) -> None:
    """Make the image of a file system of that kind.

    Raises:
        BuildError: the program failed, or the content does not fit the size asked for.
    """
    progress.update(f"making the {kind} disk", 0, 0)
    _MAKERS[kind](content, output)


def tool_versions(kind: str) -> dict[str, str]:
    """The version of each program that makes images of that kind."""
    options = {"mksquashfs": "-version"}
    return {name: _version(name, options.get(name, "-V")) for name in DISK_PROGRAMS[kind]}


def squashfs_argv(content: Content, output: Path) -> list[str]:
    """The command for squashfs. Pure."""
    times = ["-mkfs-time", str(EPOCH), "-all-time", str(EPOCH)]
    quiet = ["-quiet", "-no-progress", "-noappend"]
    how = ["-comp", "zstd", "-all-root", "-no-xattrs"]
    return ["mksquashfs", str(content.folder), str(output), *how, *times, *quiet]


def erofs_argv(content: Content, output: Path) -> list[str]:
    """The command for erofs. Pure."""
    how = ["-zlz4hc", "-x-1", "--all-root", f"-T{EPOCH}", f"-U{content.uuid}"]
    return ["mkfs.erofs", *how, str(output), str(content.folder)]


def ext4_argv(content: Content, output: Path) -> list[str]:
    """The command for an empty ext4. Pure."""
    size = ext4_size_mib(content)
    inodes = len(content.entries) + size * MIB // 16384
    once = f"hash_seed={content.uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    how = ["-q", "-F", "-t", "ext4", "-b", str(EXT4_BLOCK), "-I", "256", "-m", "0"]
    how += ["-N", str(inodes), "-O", EXT4_FEATURES, "-U", content.uuid, "-E", once]
    return ["mke2fs", *how, str(output), f"{size}M"]


def ext4_size_mib(content: Content) -> int:
    """The size asked for, or one that leaves room to write. Pure."""
    if content.size_mib is not None:
        return content.size_mib
    files = (entry for entry in content.entries if isinstance(entry, Stored))
    blocks = sum(-(-file.size // EXT4_BLOCK) for file in files) + len(content.entries)
    factor, spare = EXT4_SPARE
    return int(blocks * EXT4_BLOCK * factor) // MIB + spare


def ext4_script(entries: Iterable[Entry]) -> Iterable[str]:
    """Lines for debugfs(8) that put `entries` into an empty file system. Pure.

    It finds files by their names, so it is to run in the content's folder. Its commands write files
    of the host's, too (dump): no name or target may become a line of its own.

    Raises:
        BuildError: a name or a link's target can't be said to it.
    """
    for entry in entries:
        for line in _commands_for(entry):
            if _CONTROL.search(line) or len(line.encode()) > _MAX_COMMAND_BYTES:
                raise BuildError(
                    f"{entry.name!r} can't be put on an ext4 disk: its name, or what it points at, "
                    "is too long or has control characters in it.",
                    remedy="Leave out what brings it, or ask for erofs.",
                )
            yield line


def _commands_for(entry: Entry) -> Iterable[str]:
    place = _quoted(f"/{entry.name}")
    match entry:
        case Directory():
            yield f"mkdir {place}"
            yield f"sif {place} mode 0{0o040000 | entry.mode:o}"
        case Stored():
            yield f"write {_quoted(entry.name)} {place}"
            yield f"sif {place} mode 0{0o100000 | entry.mode:o}"
            if entry.links > 1:
                yield f"sif {place} links_count {entry.links}"
        case HardLink():
            yield f"ln {_quoted(f'/{entry.target}')} {place}"
        case Symlink():
            yield f"symlink {place} {_quoted(entry.target)}"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _make_squashfs(content: Content, output: Path) -> None:
    _run(squashfs_argv(content, output))


def _make_erofs(content: Content, output: Path) -> None:
    _run(erofs_argv(content, output))


def _make_ext4(content: Content, output: Path) -> None:
    fixed = {
        "E2FSPROGS_FAKE_TIME": str(EPOCH),
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "MKE2FS_CONFIG": "/dev/null",
    }
    _run(ext4_argv(content, output), fixed)
    script = output.with_suffix(".debugfs")
    script.write_text("".join(f"{line}\n" for line in ext4_script(content.entries)))
    wrong: list[str] = []
    # It ends with 0 whatever happens; what it prints beside its commands is what went wrong.
    _run(
        ["debugfs", "-w", "-f", str(script), str(output)],
        fixed,
        cwd=content.folder,
        on_line=lambda line: None if not line or line.startswith(_QUIET) else wrong.append(line),
    )
    script.unlink()
    if wrong:
        raise BuildError(
            f"The packages can't be put on an ext4 disk of {ext4_size_mib(content)} MiB: "
            f"{wrong[0]}.",
            remedy="Ask for a larger one, or for none: it is then made large enough.",
        )


def _run(
    argv: list[str],
    env: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
) -> None:
    run(
        [find_program(argv[0]) or argv[0], *argv[1:]],
        what="making the disk",
        cwd=cwd,
        env=env,
        on_line=on_line,
    )


def _version(name: str, option: str) -> str:
    """From the first line that has one; erofs-utils before 1.7 calls asking for it a mistake."""
    with guarded([find_program(name) or name, option]) as process:
        assert process.stdout is not None
        for line in lines(process.stdout):
            if found := _VERSION.search(line):
                return found[0]
    return "unknown"


_MAKERS: Final[Mapping[str, Callable[[Content, Path], None]]] = {
    "erofs": _make_erofs,
    "ext4": _make_ext4,
    "squashfs": _make_squashfs,
}
