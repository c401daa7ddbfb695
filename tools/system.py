"""What sessions need of the operating system, as Debian packages, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import nox

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "microvm-core" / "src"), str(ROOT / "microvm-guest" / "src")]

from microvm_guest.image.requirements import debian_packages  # noqa: E402 - the path comes first

RUN = ("qemu-system-x86", "util-linux", "passt", "iproute2")
"""To run machines, with networks; the last is for tests, which make some of their own."""
TESTS = (
    "gcc",
    "libc6-dev",
    "bzip2",
    "e2fsprogs",
    "erofs-utils",
    "squashfs-tools",
    "curl",
    "iproute2",
    "netcat-openbsd",
    "openssh-client",
    "openssh-server",
    "openssl",
    "openvpn",
)
"""For the tests on the host: to compile the guest's agent, to unpack each kind of archive, to make
each kind of file system, clients of SOCKS5, and a VPN's server with its certificates."""
LAB = ("qemu-system-x86", "busybox-static", "util-linux")
"""To run the lab (tools/lab); its kernel is fetched by the lab itself, and not installed."""
IMAGE = debian_packages()
"""To build the guest image, the kernel, the agent and the initramfs; and disks of packages."""


def require(session: nox.Session, *wanted: Iterable[str]) -> None:
    """Install what is missing, named, when we are root; else stop with the line to type.

    On a host that is no Debian nothing is done: the programs themselves say what they lack.
    """
    missing = _missing({package for packages in wanted for package in packages})
    if not missing:
        return
    line = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        session.error(f"Missing Debian packages. As root: {' '.join(line)}")
    session.log(f"Installing missing Debian packages: {' '.join(missing)}")
    session.run("apt-get", "update", "--quiet=2", external=True)
    session.run(*line, "--quiet=2", external=True, env={"DEBIAN_FRONTEND": "noninteractive"})


def _missing(packages: set[str]) -> list[str]:
    if shutil.which("dpkg-query") is None:
        return []
    # Exits with 1 when it knows nothing of one of them, and still prints the others.
    known = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Status}\n", *sorted(packages)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    there = {
        line.split()[0] for line in known.splitlines() if line.endswith(" install ok installed")
    }
    return sorted(packages - there)
