"""Where the cache is and what lies where in it. No file is touched here.

<root>/lock                      held by whoever builds or prunes
<root>/pointers/<recipe>         one line: the id of the image to boot for that recipe
<root>/images/<id>/              manifest.json, vmlinux, bzImage, config, initrd.cpio
<root>/kernels/<key>/            kernel.json, vmlinux, bzImage, config
<root>/disks/<id>/               disk.json, disk.erofs or another
<root>/names/<name>              one line: the id of the disk that a user called so
<root>/downloads/*.deb           kernel source, busybox, what disks are made of
<root>/work/                     builds under way; leftovers of dead builders
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from microvm_guest.image.errors import CacheError

CACHE_VARIABLE = "MICROVM_CACHE_DIR"


@attrs.frozen
class CacheLayout:
    """The paths of a cache."""

    root: Path

    @property
    def lock(self) -> Path:
        """An empty file; the lock is `flock` on it."""
        return self.root / "lock"

    @property
    def pointers(self) -> Path:
        """Which image belongs to which recipe."""
        return self.root / "pointers"

    @property
    def images(self) -> Path:
        """Finished images."""
        return self.root / "images"

    @property
    def kernels(self) -> Path:
        """Finished kernels, so that a new agent does not cost a new kernel."""
        return self.root / "kernels"

    @property
    def disks(self) -> Path:
        """Finished disks, made of packages."""
        return self.root / "disks"

    @property
    def names(self) -> Path:
        """Which disk a name means."""
        return self.root / "names"

    @property
    def downloads(self) -> Path:
        """Debian packages."""
        return self.root / "downloads"

    @property
    def work(self) -> Path:
        """Builds under way."""
        return self.root / "work"

    def pointer(self, recipe: str) -> Path:
        """The pointer file of a recipe."""
        return self.pointers / recipe

    def image(self, image_id: str) -> Path:
        """The folder of an image."""
        return self.images / image_id


def cache_layout(environ: Mapping[str, str] = os.environ) -> CacheLayout:
    """The cache of this user: ``$MICROVM_CACHE_DIR``, else ``microvm`` in the XDG cache folder.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG Base Directory Specification 0.8 asks.

    Raises:
        CacheError: there is no home directory to put it in, or the variable is relative.
    """
    if given := environ.get(CACHE_VARIABLE):
        if not os.path.isabs(given):
            raise CacheError(
                f"{CACHE_VARIABLE}={given!r} is a relative path.", remedy="Give an absolute one."
            )
        return CacheLayout(Path(given))
    if os.path.isabs(xdg := environ.get("XDG_CACHE_HOME", "")):
        return CacheLayout(Path(xdg, "microvm"))
    if not os.path.isabs(home := environ.get("HOME", "")):
        raise CacheError(
            "There is no home directory to keep the guest image in.",
            remedy=f"Set HOME, or {CACHE_VARIABLE} to a directory for it.",
        )
    return CacheLayout(Path(home, ".cache", "microvm"))
