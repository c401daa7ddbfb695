"""What an image is made from, as one hash: the key under which the default image is found.

The hash covers everything of this package that ends up in an image or decides how it is made.
It is computed on every `microvm run`, so it reads two dozen small files and nothing else; what
only a build can tell (the kernel's version, the compiler) is not part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from microvm_guest.agent import build_id
from microvm_guest.kernel import fragment_paths

FORMAT = 1
"""Of the cache: its folders, its manifests. Raised when an older image can't be used."""

KERNEL_BUILD = 1
"""Raised when `kernel_build.py` or `symbols.py` come to make another kernel of the same
fragments. Their text is not hashed: a comment there would cost everybody three minutes."""

DEFAULT_ARCH = "x86_64"

_HERE = Path(__file__).parent
_IMAGE_CODE = (
    _HERE / "cpio.py",
    _HERE / "rootfs.py",
    _HERE.parent / "agent" / "__init__.py",  # the compiler's flags
)


def kernel_recipe(arch: str = DEFAULT_ARCH) -> str:
    """Sixteen hex digits for how a kernel is configured and built, whatever its source."""
    parts = [settings(path.read_bytes()) for path in fragment_paths(arch)]
    return _digest(f"kernel {FORMAT} {KERNEL_BUILD} {arch}", parts)


def settings(fragment: bytes) -> bytes:
    """What of a configuration fragment counts: its settings, not its comments. Pure."""
    lines = fragment.splitlines()
    return b"\n".join(line for line in lines if line.startswith((b"CONFIG_", b"# CONFIG_")))


def image_recipe(arch: str = DEFAULT_ARCH) -> str:
    """Sixteen hex digits for all of an image: kernel recipe, agent, file tree."""
    head = f"image {FORMAT} {arch} {kernel_recipe(arch)} {build_id()}"
    return _digest(head, [path.read_bytes() for path in _IMAGE_CODE])


def _digest(head: str, parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(head.encode())
    for part in parts:
        digest.update(f"\0{len(part)}\0".encode() + part)
    return digest.hexdigest()[:16]
