"""What sessions need of the operating system, by Debian package, and how to get it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import nox

RUN = {"qemu-system-x86_64": "qemu-system-x86", "setpriv": "util-linux"}
"""To run machines: program -> Debian package."""
AGENT = {"gcc": "gcc", "/usr/include/stdio.h": "libc6-dev"}
"""To compile the guest's agent for the tests that run it on the host."""
IMAGE = {
    **AGENT,
    "musl-gcc": "musl-tools",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "dpkg-deb": "dpkg",
    "busybox": "busybox-static",
}
"""To build the guest image: the kernel, the agent and the initramfs."""


def require(session: nox.Session, *tables: Mapping[str, str]) -> None:
    """Install what is missing, named, when we are root; else stop with the line to type."""
    wanted: dict[str, str] = {}
    for table in tables:
        wanted.update(table)
    missing = sorted({package for thing, package in wanted.items() if not _present(thing)})
    if not missing:
        return
    line = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        session.error(f"Missing Debian packages. As root: {' '.join(line)}")
    session.log(f"Installing missing Debian packages: {' '.join(missing)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    session.run("apt-get", "update", "--quiet=2", external=True)
    session.run(*line, "--quiet=2", external=True, env=environment)


def _present(thing: str) -> bool:
    return Path(thing).exists() if thing.startswith("/") else shutil.which(thing) is not None
