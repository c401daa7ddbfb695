"""What images and disks the cache holds, for `microvm image list`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from microvm_guest.image.disks import GuestDisk, load_disk
from microvm_guest.image.errors import ImageDamaged
from microvm_guest.image.images import GuestImage, load_image
from microvm_guest.image.recipe import image_recipe
from microvm_guest.image.verify import damage
from microvm_guest.kernel.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from microvm_guest.image.layout import CacheLayout


@attrs.frozen(kw_only=True)
class ListedImage:
    """A folder among the images, whole or not."""

    id: str
    path: Path
    image: GuestImage | None
    """None when it can't be read at all."""
    is_default: bool
    damage: tuple[str, ...]
    """One sentence for each thing wrong with it."""


def list_images(layout: CacheLayout, *, verify: bool = False) -> list[ListedImage]:
    """Every image in the cache, the default ones first.

    Args:
        layout: The cache's paths.
        verify: Read every byte, not only sizes.
    """
    defaults = {_target(layout.pointer(image_recipe(arch))) for arch in ARCHITECTURES}
    listed = []
    for path in sorted(layout.images.glob("*")):
        image = None
        wrong: tuple[str, ...] = ()
        try:
            image = load_image(path)
        except ImageDamaged as error:
            wrong = (error.message,)
        if image is not None and verify:
            wrong = tuple(damage(path, image.manifest["files"]))
        listed.append(
            ListedImage(
                id=path.name,
                path=path,
                image=image,
                is_default=path.name in defaults,
                damage=wrong,
            )
        )
    return sorted(listed, key=lambda one: (not one.is_default, one.id))


@attrs.frozen(kw_only=True)
class ListedDisk:
    """A folder among the disks, whole or not."""

    id: str
    path: Path
    disk: GuestDisk | None
    """None when it can't be read at all."""
    damage: tuple[str, ...]
    """One sentence for each thing wrong with it."""


def list_disks(layout: CacheLayout, *, verify: bool = False) -> list[ListedDisk]:
    """Every disk in the cache; see `list_images`."""
    listed = []
    for path in sorted(layout.disks.glob("*")):
        disk = None
        wrong: tuple[str, ...] = ()
        try:
            disk = load_disk(path)
        except ImageDamaged as error:
            wrong = (error.message,)
        if disk is not None and verify:
            wrong = tuple(damage(path, disk.manifest["files"]))
        listed.append(ListedDisk(id=path.name, path=path, disk=disk, damage=wrong))
    return listed


def _target(pointer: Path) -> str | None:
    try:
        return pointer.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
