"""What the kernel's build calls things, by architecture."""

from __future__ import annotations

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
