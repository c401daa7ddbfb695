"""The guest kernel's configuration: fragments as data, and how they are merged and checked.

``base.config`` holds what every architecture wants, ``<arch>.config`` the rest. A new
architecture is a new fragment and a line in `ARCHITECTURES`.
"""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Architecture:
    """What the kernel's build calls things on one architecture."""

    name: str
    """Our name: `platform.machine()`'s."""
    kbuild_arch: str
    """`ARCH=` of the kernel's makefiles."""
    compressed: str
    """The self-extracting image: make's target for it."""
    compressed_path: str
    """Where that target lands in the build tree."""


ARCHITECTURES = {
    "x86_64": Architecture(
        name="x86_64",
        kbuild_arch="x86",
        compressed="bzImage",
        compressed_path="arch/x86/boot/bzImage",
    ),
}


def fragment_paths(arch: str) -> tuple[Path, ...]:
    """The configuration fragments of an architecture, in the order in which they are merged."""
    folder = Path(__file__).parent
    return (folder / "base.config", folder / f"{arch}.config")
