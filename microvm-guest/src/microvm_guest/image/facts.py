"""What is on a kernel, an initramfs or a disk of ours, from what was written down at its building.

What counts is the manifest beside it, so it may lie in a cache or in a copy of a cache's folder. A
disk that was copied out of there to be written on is one of which nothing is known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from microvm.abc import ImageFacts
from microvm_guest.image.disks import DISK_MANIFEST, load_disk
from microvm_guest.image.errors import ImageDamaged
from microvm_guest.image.images import (
    COMPRESSED_KERNEL,
    INITRD,
    KERNEL,
    KERNEL_CONFIG,
    MANIFEST,
    load_image,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_BUILT_IN: Final = re.compile(r"^CONFIG_(\w+)=y$", re.MULTILINE)
_HEADER_BYTES: Final = 110
_SIZE: Final = slice(54, 62)
_NAME_SIZE: Final = slice(94, 102)
_TRAILER: Final = "TRAILER!!!"


def image_facts(path: Path) -> ImageFacts | None:
    """What is known of a file; None of one that is no image's or disk's of ours."""
    place = path.resolve()
    folder = place.parent
    try:
        if (folder / DISK_MANIFEST).is_file():
            disk = load_disk(folder)
            return ImageFacts(packages=disk.packages) if disk.path == place else None
        if not (folder / MANIFEST).is_file():
            return None
        listed = load_image(folder).manifest["files"]
        if place.name in (KERNEL, COMPRESSED_KERNEL) and {place.name, KERNEL_CONFIG} <= set(listed):
            return ImageFacts(kernel_features=built_in((folder / KERNEL_CONFIG).read_text()))
        if place.name == INITRD:
            with place.open("rb") as file:
                return ImageFacts(packages=(), files=(f"/{name}" for name in names(file)))
    except (ImageDamaged, OSError, ValueError):
        return None  # whoever boots it says what is wrong with it
    return None


def built_in(config: str) -> list[str]:
    """The symbols that are ``y`` in a kernel's ``.config``; modules are not. Pure."""
    return _BUILT_IN.findall(config)


def _number(digits: bytes) -> int:
    return int.from_bytes(bytes.fromhex(digits.decode()), "big")


def names(file: IO[bytes]) -> Iterator[str]:
    """The names in a cpio archive as `cpio.archive` writes it.

    Raises:
        ValueError: it is none.
    """
    while True:
        header = file.read(_HEADER_BYTES)
        if len(header) != _HEADER_BYTES or not header.startswith(b"070701"):
            raise ValueError("no cpio header where one should be")
        size, name_size = _number(header[_SIZE]), _number(header[_NAME_SIZE])
        padded = name_size + -(_HEADER_BYTES + name_size) % 4
        name = file.read(padded)[: name_size - 1].decode()
        if name == _TRAILER:
            return
        yield name
        file.seek(size + -size % 4, 1)
