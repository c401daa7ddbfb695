"""Fetching packages with the system's apt: the same keys, mirrors and proxies the host trusts.

`apt-get download` works for every user and installs nothing. What it fetches is kept, so that a
second build needs no network.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import attrs

from microvm_guest.image.errors import BuildError, SourceUnavailable
from microvm_guest.image.process import guarded, output_of, run

if TYPE_CHECKING:
    from microvm_guest.image.cache import Cache
    from microvm_guest.image.progress import Progress

_URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<name>\S+) (?P<size>\d+) SHA256:(?P<sha256>\w{64})")
_STATUS = re.compile(r"dlstatus:\d+:([\d.]+):")


@attrs.frozen(kw_only=True)
class Candidate:
    """The version of a package that apt would fetch now."""

    package: str
    filename: str
    """``name_version_arch.deb`` as apt writes it, a colon in the version as ``%3a``."""
    size: int
    sha256: str


def parse_uris(package: str, text: str) -> Candidate | None:
    """Read what ``apt-get download --print-uris`` printed. Pure."""
    found = _URI_LINE.search(text)
    if found is None or "/" in found["name"]:
        return None
    return Candidate(
        package=package,
        filename=found["name"],
        size=int(found["size"]),
        sha256=found["sha256"].lower(),
    )


def parse_all_uris(text: str) -> list[Candidate]:
    """The same of several packages, each by the name in its file's name. Pure."""
    found = (
        parse_uris(match["name"].partition("_")[0], match[0]) for match in _URI_LINE.finditer(text)
    )
    return sorted((one for one in found if one is not None), key=lambda one: one.package)


def version_of(filename: str) -> str:
    """The version in a package's file name."""
    return filename.split("_")[1].replace("%3a", ":")


def packages_starting_with(prefix: str) -> tuple[str, ...]:
    """Names of the packages that apt knows and that begin with `prefix`."""
    return tuple(sorted(output_of(["apt-cache", "pkgnames", prefix], what="asking apt").split()))


def fetch(cache: Cache, package: str, progress: Progress) -> Path:
    """The newest version of a package that apt knows, from the cache if it is there.

    When apt can't tell (its lists are gone, as in most containers) any version that was
    fetched before will do.

    Raises:
        SourceUnavailable: apt does not know the package, or can't reach its servers.
        BuildError: there is no apt.
    """
    downloads = cache.layout.downloads
    with cache.work_folder() as folder:
        candidate = _candidate(package, folder)
    if candidate is None:
        kept = sorted(downloads.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
        if kept:
            return kept[-1]
        raise SourceUnavailable(
            f"apt knows no package {package}.",
            remedy="Refresh its lists as root: apt-get update. For the kernel you may give a "
            "source of your own: microvm image build --kernel-source PATH",
        )
    place = downloads / candidate.filename
    if place.is_file() and place.stat().st_size == candidate.size:
        return place
    with cache.work_folder() as folder:
        label = f"fetching {package} {version_of(candidate.filename)}"
        download([package], folder, label, progress)
        fetched = folder / candidate.filename
        verify(fetched, candidate)
        fetched.rename(place)
    return place


def _candidate(package: str, empty: Path) -> Candidate | None:
    argv = ["apt-get", "download", "--print-uris", package]
    try:
        # In an empty folder: apt prints nothing about a package whose file is there.
        return parse_uris(package, output_of(argv, what="asking apt", cwd=empty))
    except BuildError:
        # Exit code 100 for a package that is not in the lists; no apt at all says so later.
        return None


def download(packages: Sequence[str], folder: Path, label: str, progress: Progress) -> None:
    """Have apt put packages (``name`` or ``name=version``) into a folder.

    Raises:
        SourceUnavailable: it can't reach its servers.
    """
    progress.update(label, 0, 100)

    def on_line(line: str) -> None:
        if found := _STATUS.match(line):
            progress.update(label, int(float(found[1])), 100)

    argv = ["apt-get", "download", "-q", "-o", "APT::Status-Fd=1"]
    if os.geteuid() == 0:
        # apt would change to a user of its own, who can't write to our cache.
        argv += ["-o", "APT::Sandbox::User=root"]
    try:
        run(
            [*argv, *packages],
            what=label,
            cwd=folder,
            on_line=on_line,
            is_noise=lambda line: line.startswith("dlstatus:"),
        )
    except BuildError as error:
        raise SourceUnavailable(
            f"apt could not fetch {', '.join(packages[:3])}: {error.message}",
            remedy=f"Is the network up? As root, apt-get update may help. {error.remedy}",
        ) from error


def verify(path: Path, candidate: Candidate) -> None:
    """Apt has checked it against its signed lists; this is for the copy we keep.

    Raises:
        SourceUnavailable: it is gone, or not what the lists have.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        digest = "nothing"
    if digest != candidate.sha256:
        raise SourceUnavailable(
            f"{candidate.filename} came as {digest}, not as apt's lists have it.",
            remedy="Run apt-get update as root and try again.",
        )


@contextmanager
def member_of(deb: Path, pattern: re.Pattern[str]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The first regular file of a package whose name (``./usr/...``) matches, as a stream.

    Raises:
        BuildError: there is none, or the package can't be read.
    """
    argv = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with guarded(argv) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isreg() and pattern.fullmatch(member.name):
                        stream = archive.extractfile(member)
                        assert stream is not None
                        yield member, stream
                        return
        except tarfile.TarError as error:
            raise BuildError(
                f"{deb} can't be read as a Debian package: {error}.",
                remedy="Remove it, and build again.",
            ) from error
    raise BuildError(f"{deb} holds no file like {pattern.pattern}.", remedy="Give another source.")
