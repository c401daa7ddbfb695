"""A finished guest image, and finding the one to boot.

`default_image` stands on the path of every `microvm run`: it hashes the package's own recipe,
follows one pointer file and reads one manifest. It takes no lock, because what it reads is only
ever put in place whole, by a rename.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from microvm_guest.image.errors import ImageDamaged, ImageNotBuilt
from microvm_guest.image.layout import CacheLayout, cache_layout
from microvm_guest.image.recipe import DEFAULT_ARCH, image_recipe

MANIFEST = "manifest.json"
KERNEL = "vmlinux"
COMPRESSED_KERNEL = "bzImage"
KERNEL_CONFIG = "config"
INITRD = "initrd.cpio"
MAX_MANIFEST_BYTES = 64 * 1024
REBUILD = "Build it again: microvm image build --force"


@attrs.frozen(kw_only=True)
class GuestImage:
    """A kernel and an initramfs that belong together, in the cache."""

    id: str
    """First sixteen hex digits of the manifest's hash: equal content, equal id."""
    path: Path
    manifest: Mapping[str, Any] = attrs.field(repr=False, hash=False)

    @property
    def kernel(self) -> Path:
        """What boots fastest: the uncompressed ELF, entered by its PVH note."""
        return self.path / KERNEL

    @property
    def compressed_kernel(self) -> Path:
        """The same kernel for monitors that take no ELF."""
        return self.path / COMPRESSED_KERNEL

    @property
    def initrd(self) -> Path:
        """The initramfs: agent and busybox."""
        return self.path / INITRD

    @property
    def arch(self) -> str:
        """`platform.machine()`'s name of the guest's architecture."""
        return str(self.manifest["arch"])

    @property
    def kernel_version(self) -> str:
        """The kernel's release without our suffix, e.g. ``6.1.192``."""
        return str(self.manifest["kernel"]["version"])

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(int(facts["size"]) for facts in self.manifest["files"].values())


def default_image(arch: str = DEFAULT_ARCH, layout: CacheLayout | None = None) -> GuestImage:
    """The image that this version of the package boots by default.

    Raises:
        ImageNotBuilt: nobody has built it yet; the remedy says how.
        ImageDamaged: files are missing or have another size than they were built with.
        CacheError: the cache's place can't be told.
    """
    cache = cache_layout() if layout is None else layout
    pointer = cache.pointer(image_recipe(arch))
    try:
        image_id = pointer.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ImageNotBuilt(
            f"The guest image for {arch} has not been built (looked in {cache.root}).",
            remedy="Build it once, in a few minutes: microvm image build",
        ) from None
    if not image_id.isalnum():
        raise ImageDamaged(f"{pointer} is damaged.", remedy=REBUILD)
    return load_image(cache.image(image_id))


def load_image(path: Path) -> GuestImage:
    """Read an image's manifest and see that its files are there in full size.

    Raises:
        ImageDamaged: they are not.
    """
    manifest = read_manifest(path / MANIFEST)
    try:
        sizes = {str(name): int(facts["size"]) for name, facts in manifest["files"].items()}
        str(manifest["arch"]), str(manifest["kernel"]["version"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageDamaged(f"{path / MANIFEST} lacks {error}.", remedy=REBUILD) from error
    for name in (KERNEL, INITRD):
        if name not in sizes:
            raise ImageDamaged(f"{path / MANIFEST} does not list {name}.", remedy=REBUILD)
    for name, size in sizes.items():
        check_size(path / name, size)
    return GuestImage(id=path.name, path=path, manifest=manifest)


def read_manifest(path: Path, max_bytes: int = MAX_MANIFEST_BYTES) -> dict[str, Any]:
    """Read a JSON object of bounded size.

    Raises:
        ImageDamaged: there is none, or it is something else.
    """
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(max_bytes))
    except (OSError, ValueError, RecursionError) as error:
        raise ImageDamaged(f"{path} can't be read: {error}.", remedy=REBUILD) from error
    if not isinstance(value, dict):
        raise ImageDamaged(f"{path} is not a JSON object.", remedy=REBUILD)
    return value


def check_size(path: Path, size: int) -> None:
    """See that `path` is a regular file of `size` bytes.

    Raises:
        ImageDamaged: it is not.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise ImageDamaged(f"{path} is gone: {error.strerror}.", remedy=REBUILD) from error
    if not stat.S_ISREG(found.st_mode):
        raise ImageDamaged(f"{path} is not a regular file.", remedy=REBUILD)
    if found.st_size != size:
        raise ImageDamaged(
            f"{path} has {found.st_size} bytes, but was built with {size}.", remedy=REBUILD
        )
