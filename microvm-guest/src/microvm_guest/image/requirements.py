"""What a host needs to build the guest image, and the Debian package that brings each thing.

Data first: `noxfile.py` installs from it, `microvm image build` checks against it before it
starts, so that everything missing is told at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping

from microvm_guest.image.errors import RequirementsMissing

KERNEL_PROGRAMS: Mapping[str, str] = {
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "perl": "perl-base",
    "tar": "tar",
    "xz": "xz-utils",
}
"""Program -> package: to build a kernel."""

KERNEL_HEADERS: Mapping[str, str] = {
    "gelf.h": "libelf-dev",
    "stdio.h": "libc6-dev",
}
"""C header -> package. The kernel's objtool is a program of the host that reads ELF."""

AGENT_PROGRAMS: Mapping[str, str] = {"gcc": "gcc"}
AGENT_HEADERS: Mapping[str, str] = {"stdio.h": "libc6-dev"}
"""To compile the agent where there is no musl-gcc: libc6-dev holds the static libc too."""

DEBIAN_PROGRAMS: Mapping[str, str] = {"apt-get": "apt", "dpkg-deb": "dpkg"}
"""To fetch kernel source and busybox from Debian. A host without them is no Debian, and is told
of the ways to do without, not to install apt."""

DISK_PROGRAMS: Mapping[str, Mapping[str, str]] = {
    "erofs": {"mkfs.erofs": "erofs-utils"},
    "ext4": {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs"},
    "squashfs": {"mksquashfs": "squashfs-tools"},
}
"""To make a disk of packages, by its file system."""

OPTIONAL_PROGRAMS: Mapping[str, str] = {"musl-gcc": "musl-tools", "busybox": "busybox-static"}
"""A smaller agent; a busybox that needs no download."""


def debian_packages() -> tuple[str, ...]:
    """Every package that a complete build on Debian uses, optional ones too."""
    tables = (
        KERNEL_PROGRAMS,
        KERNEL_HEADERS,
        DEBIAN_PROGRAMS,
        OPTIONAL_PROGRAMS,
        *DISK_PROGRAMS.values(),
    )
    return tuple(sorted({package for table in tables for package in table.values()}))


def check(
    programs: Mapping[str, str],
    headers: Mapping[str, str],
    *,
    what: str = "the guest image",
    which: Callable[[str], str | None] = shutil.which,
    missing_headers: Callable[[Iterable[str]], list[str]] | None = None,
) -> None:
    """See that all of `programs` and `headers` are there.

    Raises:
        RequirementsMissing: naming everything that is not, and the line that installs it.
    """
    find_headers = find_missing_headers if missing_headers is None else missing_headers
    lacking = {name: package for name, package in programs.items() if which(name) is None}
    if headers and "gcc" in lacking:
        # Nothing to ask about headers: name their packages, for a host without a compiler
        # rarely has them.
        lacking.update(headers)
    elif headers:
        lacking.update({name: headers[name] for name in find_headers(headers)})
    if lacking:
        packages = sorted(set(lacking.values()))
        raise RequirementsMissing(
            f"To build {what} this host lacks {', '.join(sorted(lacking))}.",
            programs=sorted(lacking),
            packages=packages,
            remedy=f"Install with: {apt_install_line(packages)}",
        )


def find_program(name: str) -> str | None:
    """Where a program is; Debian keeps those that make file systems off users' PATH."""
    places = (os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin")
    return shutil.which(name, path=os.pathsep.join(places))


def has_apt(which: Callable[[str], str | None] = shutil.which) -> bool:
    """Whether packages can be fetched here."""
    return all(which(name) is not None for name in DEBIAN_PROGRAMS)


def apt_install_line(packages: Iterable[str]) -> str:
    """The command that installs `packages` on Debian, to be run as root."""
    return f"apt-get install --no-install-recommends {' '.join(packages)}"


def find_missing_headers(headers: Iterable[str]) -> list[str]:
    """Those of `headers` that the C compiler does not find."""
    return [name for name in headers if not _compiles(f"#include <{name}>\n")]


def _compiles(source: str) -> bool:
    done = subprocess.run(
        ["gcc", "-fsyntax-only", "-x", "c", "-"],
        input=source.encode(),
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
