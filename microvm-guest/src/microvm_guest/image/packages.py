"""Which packages a disk is made of: the closure that apt would install on an empty system.

Apt is asked twice, about an empty system and without rights: what it would install, and what each
of those is to have as SHA-256. Then what is not in the cache is fetched, all in one run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from microvm_guest.image.debian import (
    Candidate,
    download,
    parse_all_uris,
    verify,
    version_of,
)
from microvm_guest.image.errors import BuildError, SourceUnavailable
from microvm_guest.image.process import output_of

if TYPE_CHECKING:
    from microvm_guest.image.cache import Cache
    from microvm_guest.image.progress import Progress

MAX_PACKAGES: Final = 2000
MAX_DOWNLOAD_BYTES: Final = 4 << 30
ESSENTIAL: Final = ("?and(?essential,?architecture({arch}))", "?exact-name(usr-is-merged)")
"""Apt patterns (apt-patterns(7)): what Debian takes to be there without saying so. The second keeps
out usrmerge and all of perl, which would merge what is merged in a tree of ours."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_PLANNED: Final = re.compile(r"^'[^']*' (\S+_\S+_\S+\.deb) \d+ \S*$", re.MULTILINE)


@attrs.frozen(kw_only=True)
class Package:
    """A package of a certain version, in the cache."""

    name: str
    version: str
    sha256: str
    deb: Path


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names, sorted, each once.

    Raises:
        BuildError: one is no name of a package (Debian Policy 4.6, 5.6.1 "Source").
    """
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong:
        raise BuildError(
            f"{wrong[0]!r} is not the name of a package.",
            remedy="Give names as apt knows them, without versions: openvpn,curl",
        )
    return tuple(sorted(set(names)))


def planned(text: str) -> list[str]:
    """``name=version`` for each file that ``apt-get --print-uris install`` lists. Pure."""
    files = _PLANNED.findall(text)
    return sorted(f"{name.partition('_')[0]}={version_of(name)}" for name in files)


def resolve(names: Sequence[str], *, essential: bool, empty: Path) -> list[Candidate]:
    """The packages that apt would install now for `names`, by name.

    Args:
        names: Checked names.
        essential: With what Debian calls essential.
        empty: An empty folder, for apt to find nothing in.

    Raises:
        SourceUnavailable: apt does not know one of them, or its lists are gone.
        BuildError: there is no apt.
    """
    options = ["-o", "Debug::NoLocking=1", "-o", "Dir::State::status=/dev/null"]
    options += ["-o", f"Dir::Cache::archives={empty}/", "-o", "APT::Install-Recommends=0"]
    # Or apt takes itself to be essential.
    options += ["-o", "pkgCacheGen::ForceEssential=,"]
    wanted = list(names)
    if essential:
        arch = output_of(["dpkg", "--print-architecture"], what="asking dpkg").strip()
        wanted += [pattern.format(arch=arch) for pattern in ESSENTIAL]
    argv = ["apt-get", "-qq", "--print-uris", *options, "install", *wanted]
    try:
        specs = planned(output_of(argv, what="asking apt", cwd=empty))
    except BuildError as error:
        if "is not installed" in error.message:
            raise
        raise SourceUnavailable(
            f"apt can't tell what {', '.join(names)} would need.",
            remedy=f"Are the names right? As root, apt-get update may help. {error.remedy}",
        ) from error
    if not 0 < len(specs) <= MAX_PACKAGES:
        raise SourceUnavailable(
            f"apt would install {len(specs)} packages.", remedy="Give the names of a few programs."
        )
    text = output_of(
        ["apt-get", "download", "--print-uris", *specs], what="asking apt for hashes", cwd=empty
    )
    found = parse_all_uris(text)
    lacking = {spec.partition("=")[0] for spec in specs} - {one.package for one in found}
    if lacking:
        raise SourceUnavailable(
            f"apt's lists have no SHA-256 for {', '.join(sorted(lacking))}.",
            remedy="Run apt-get update as root and try again.",
        )
    if (total := sum(one.size for one in found)) > MAX_DOWNLOAD_BYTES:
        raise SourceUnavailable(
            f"These packages are {total >> 20} MiB to fetch; the bound is "
            f"{MAX_DOWNLOAD_BYTES >> 20}.",
            remedy="Leave out what the guest does not need.",
        )
    return found


def fetch_all(cache: Cache, wanted: Sequence[Candidate], progress: Progress) -> list[Package]:
    """Every package from the cache, or fetched into it, its hash compared.

    Raises:
        SourceUnavailable: apt could not fetch one, or it came as something else.
    """
    downloads = cache.layout.downloads
    missing = [one for one in wanted if not _is_there(downloads / one.filename, one)]
    if missing:
        with cache.work_folder() as folder:
            specs = [f"{one.package}={version_of(one.filename)}" for one in missing]
            download(specs, folder, f"fetching {len(missing)} packages", progress)
            for one in missing:
                verify(folder / one.filename, one)
                (folder / one.filename).rename(downloads / one.filename)
    packages = []
    for one in wanted:
        deb = downloads / one.filename
        verify(deb, one)
        packages.append(
            Package(name=one.package, version=version_of(one.filename), sha256=one.sha256, deb=deb)
        )
    return packages


def _is_there(deb: Path, wanted: Candidate) -> bool:
    try:
        return deb.stat().st_size == wanted.size
    except FileNotFoundError:
        return False
