"""Where the kernel's source comes from: Debian, a tar file, a package, or a tree.

A source says what it is in a string (`identity`), so that a kernel built from it is found again,
and puts a tree in place that the kernel's makefiles can work with (`prepare`).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import attrs

from microvm_guest.image.debian import fetch, member_of, packages_starting_with
from microvm_guest.image.errors import SourceUnavailable
from microvm_guest.image.process import exit_code, guarded, lines, step_failed

if TYPE_CHECKING:
    from microvm_guest.image.cache import Cache
    from microvm_guest.image.progress import Progress

OLDEST = (6, 1)
PREFERRED_SERIES = ("6.1", "6.12")
"""What the fragments are tried with, the one that boots fastest first."""

CHUNK_BYTES = 1 << 20
DEB_MAGIC = b"!<arch>\n"
DEB_TARBALL = re.compile(r"\./usr/src/(?:[^/]+/)?linux-source-[^/]+\.tar\.\w+")
_PACKAGE = re.compile(r"linux-source-(\d+)\.(\d+)(?:\.\d+)?")
_COMPRESSIONS = (
    (b"\xfd7zXZ\0", "--xz"),
    (b"\x1f\x8b", "--gzip"),
    (b"BZh", "--bzip2"),
    (b"\x28\xb5\x2f\xfd", "--zstd"),
)
LEFTOVERS = (".config", "include/config", "arch/x86/include/generated")
"""What a build inside a source tree leaves; the kernel refuses to build elsewhere then."""


@attrs.frozen(kw_only=True)
class PreparedSource:
    """A source tree ready to build from."""

    tree: Path
    output: Path
    """Where to build; the same as `tree` when the tree is ours."""
    version: str
    """From its makefile, e.g. ``6.1.192``."""


@attrs.frozen
class DebianSource:
    """The source package of Debian or Ubuntu, already fetched."""

    deb: Path

    @property
    def identity(self) -> str:
        """Package and version."""
        return "debian " + self.deb.name.rsplit("_", 1)[0].replace("_", " ").replace("%3a", ":")


@attrs.frozen
class FileSource:
    """A tar file or a .deb of the user's."""

    path: Path

    @property
    def identity(self) -> str:
        """The hash of its content."""
        with self.path.open("rb") as file:
            return "file " + hashlib.file_digest(file, "sha256").hexdigest()


@attrs.frozen
class TreeSource:
    """An unpacked tree of the user's; nothing is written into it."""

    path: Path

    @property
    def identity(self) -> str:
        """A hash over names, sizes and times: reading 1.4 GB would take longer than it saves."""
        digest = hashlib.sha256()
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(name for name in folders if name != ".git")
            for name in sorted(names):
                path = os.path.join(folder, name)
                found = os.lstat(path)
                digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
        return "tree " + digest.hexdigest()


Source = DebianSource | FileSource | TreeSource


def given_source(path: Path) -> FileSource | TreeSource:
    """The source at a path that the user gave.

    Raises:
        SourceUnavailable: nothing of the kind is there.
    """
    path = path.absolute()
    if path.is_dir():
        if not (path / "Kconfig").is_file() or not (path / "Makefile").is_file():
            raise SourceUnavailable(
                f"{path} is not a Linux source tree: it has no Kconfig.",
                remedy="Give its top folder, the one that holds MAINTAINERS.",
            )
        if found := [name for name in LEFTOVERS if (path / name).exists()]:
            raise SourceUnavailable(
                f"{path} has been built in ({found[0]} is there), and the kernel's makefiles "
                "refuse to use such a tree for a build elsewhere.",
                remedy=f"Clean it with: make -C {path} mrproper (this removes its .config)",
            )
        return TreeSource(path)
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise SourceUnavailable(f"{path} {what}.", remedy="Give a kernel tree, tar file or .deb.")
    if not os.access(path, os.R_OK):
        raise SourceUnavailable(f"{path} can't be read.", remedy="Check its permissions.")
    return FileSource(path)


def debian_source(cache: Cache, series: str | None, progress: Progress) -> DebianSource:
    """Fetch Debian's source of a kernel series, or of the series best tried.

    Raises:
        SourceUnavailable: apt has none, or can't fetch it.
    """
    packages = packages_starting_with("linux-source-")
    package = f"linux-source-{series}" if series else choose_package(packages)
    if package is None:
        raise SourceUnavailable(
            "apt knows no package linux-source-6.1 or later.",
            remedy="Refresh its lists as root: apt-get update (with a deb line for your release "
            "in its sources), or give a source: microvm image build --kernel-source PATH",
        )
    if series and package not in packages:
        known = ", ".join(name.removeprefix("linux-source-") for name in usable(packages))
        raise SourceUnavailable(
            f"apt knows no package {package}.",
            remedy=f"It knows these series: {known}." if known else "Run apt-get update as root.",
        )
    return DebianSource(fetch(cache, package, progress))


def usable(packages: tuple[str, ...]) -> list[str]:
    """Kernel source packages of a series we can use, oldest first. Pure."""
    found = ((_PACKAGE.fullmatch(name), name) for name in packages)
    versions = [((int(m[1]), int(m[2])), name) for m, name in found if m is not None]
    return [name for version, name in sorted(versions) if version >= OLDEST]


def choose_package(packages: tuple[str, ...]) -> str | None:
    """The package to build when the user names no series. Pure."""
    names = usable(packages)
    for series in PREFERRED_SERIES:
        if f"linux-source-{series}" in names:
            return f"linux-source-{series}"
    return names[-1] if names else None


@contextmanager
def prepare(source: Source, cache: Cache, progress: Progress) -> Iterator[PreparedSource]:
    """A tree to build from and a place to build in; what was unpacked is removed afterwards.

    Raises:
        BuildError: the archive can't be unpacked, or holds no kernel.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(cache.work_folder())
        if isinstance(source, TreeSource):
            tree, output = source.path, folder
        else:
            tree = output = folder
            path = source.deb if isinstance(source, DebianSource) else source.path
            _unpack(path, folder, progress)
        yield PreparedSource(tree=tree, output=output, version=_version(tree))


def _version(tree: Path) -> str:
    try:
        text = (tree / "Makefile").read_text(errors="replace")
    except OSError as error:
        raise SourceUnavailable(
            f"The kernel source has no Makefile: {error.strerror}.",
            remedy="Give a kernel tree, a tar file with one folder in it, or a linux-source .deb.",
        ) from error
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) *= *(\d+) *$", text, re.MULTILINE))
    if len(found) != 3:
        raise SourceUnavailable(
            "The makefile of the source is not the kernel's.", remedy="Give a kernel tree."
        )
    version = f"{found['VERSION']}.{found['PATCHLEVEL']}.{found['SUBLEVEL']}"
    if series_of(version) < OLDEST:
        raise SourceUnavailable(
            f"Linux {version} is too old.", remedy="Give the source of Linux 6.1 or later."
        )
    return version


def series_of(version: str) -> tuple[int, int]:
    """``6.1.192`` -> (6, 1)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _unpack(path: Path, folder: Path, progress: Progress) -> None:
    with path.open("rb") as file:
        is_deb = file.read(len(DEB_MAGIC)) == DEB_MAGIC
    if is_deb:
        with member_of(path, DEB_TARBALL) as (member, stream):
            _untar(stream, member.size, folder, progress)
    else:
        with path.open("rb") as file:
            _untar(file, path.stat().st_size, folder, progress)


def _untar(stream: IO[bytes], size: int, folder: Path, progress: Progress) -> None:
    """Unpack the one top folder of an archive into `folder`."""
    label = "unpacking the kernel source"
    progress.update(label, 0, size)
    chunk = stream.read(CHUNK_BYTES)
    option = [flag for magic, flag in _COMPRESSIONS if chunk.startswith(magic)]
    argv = ["tar", "-x", *option, "--strip-components=1", "--no-same-owner", "-f", "-"]
    done = 0
    tail: deque[str] = deque(maxlen=10)
    with guarded(argv, cwd=folder, pipe_stdin=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # On a full disk tar complains of every file: somebody must read while we write.
        printed = process.stdout
        reader = threading.Thread(target=lambda: tail.extend(lines(printed)))
        reader.start()
        try:
            while chunk:
                process.stdin.write(chunk)
                done += len(chunk)
                progress.update(label, done, size)
                chunk = stream.read(CHUNK_BYTES)
            process.stdin.close()
        except BrokenPipeError:
            pass  # tar has given up; its exit code and last words follow
        except BaseException:
            process.kill()
            raise
        finally:
            reader.join()
        code = exit_code(process)
    if code:
        raise step_failed(label, argv, code, tail)
