"""The guest image: how it is built, where it is kept, and how it is found.

    image = default_image()                     # quick; raises ImageNotBuilt
    image = build_image(ImageSpec(), Silent())  # minutes the first time
    image.kernel, image.initrd

    disk = compose(DiskSpec(packages=("curl",)), Silent())  # seconds the first time
    disk.path, disk.format

Names are imported when they are used: finding an image must not load what building one needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microvm_guest.image.build import ImageSpec, build_image, prune
    from microvm_guest.image.composition import DiskSpec, compose
    from microvm_guest.image.cpio import File
    from microvm_guest.image.disks import GuestDisk, disk_names, find_disk
    from microvm_guest.image.errors import (
        BuildError,
        CacheError,
        ImageDamaged,
        ImageNotBuilt,
        KernelConfigError,
        RequirementsMissing,
        SourceUnavailable,
    )
    from microvm_guest.image.images import GuestImage, default_image
    from microvm_guest.image.layout import CacheLayout, cache_layout
    from microvm_guest.image.listing import ListedDisk, ListedImage, list_disks, list_images
    from microvm_guest.image.progress import Bar, Lines, Progress, Silent, progress_for

_HOMES = {
    "Bar": "progress",
    "BuildError": "errors",
    "CacheError": "errors",
    "CacheLayout": "layout",
    "DiskSpec": "composition",
    "File": "cpio",
    "GuestDisk": "disks",
    "GuestImage": "images",
    "ImageDamaged": "errors",
    "ImageNotBuilt": "errors",
    "ImageSpec": "build",
    "KernelConfigError": "errors",
    "Lines": "progress",
    "ListedDisk": "listing",
    "ListedImage": "listing",
    "Progress": "progress",
    "RequirementsMissing": "errors",
    "Silent": "progress",
    "SourceUnavailable": "errors",
    "build_image": "build",
    "cache_layout": "layout",
    "compose": "composition",
    "default_image": "images",
    "disk_names": "disks",
    "find_disk": "disks",
    "list_disks": "listing",
    "list_images": "listing",
    "progress_for": "progress",
    "prune": "build",
}

__all__ = [
    "Bar",
    "BuildError",
    "CacheError",
    "CacheLayout",
    "DiskSpec",
    "File",
    "GuestDisk",
    "GuestImage",
    "ImageDamaged",
    "ImageNotBuilt",
    "ImageSpec",
    "KernelConfigError",
    "Lines",
    "ListedDisk",
    "ListedImage",
    "Progress",
    "RequirementsMissing",
    "Silent",
    "SourceUnavailable",
    "build_image",
    "cache_layout",
    "compose",
    "default_image",
    "disk_names",
    "find_disk",
    "list_disks",
    "list_images",
    "progress_for",
    "prune",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
