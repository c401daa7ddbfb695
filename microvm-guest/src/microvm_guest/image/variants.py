"""Disks that provisioners bring, each by a name: what is on them is ours to choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from microvm_guest.image.composition import DiskSpec, composed
from microvm_guest.image.errors import BuildError, ImageNotBuilt

if TYPE_CHECKING:
    from microvm_guest.image.disks import GuestDisk
    from microvm_guest.image.layout import CacheLayout

VARIANTS: Final[Mapping[str, DiskSpec]] = {
    "vpn": DiskSpec(
        packages=("busybox-static", "dash", "iproute2", "openvpn"), essential=False, name="vpn"
    ),
}
"""`vpn`: OpenVPN with its libraries, `ip`, and a shell for whoever wants to look."""


def variant(name: str) -> DiskSpec:
    """What is on a variant's disk.

    Raises:
        BuildError: there is none of that name.
    """
    try:
        return VARIANTS[name]
    except KeyError:
        raise BuildError(
            f"There is no image variant {name!r}.", remedy=f"Known: {', '.join(sorted(VARIANTS))}."
        ) from None


def variant_disk(name: str, layout: CacheLayout | None = None) -> GuestDisk:
    """A variant's disk, from the cache.

    Raises:
        ImageNotBuilt: it has not been made, or is another version's.
    """
    disk = composed(variant(name), layout)
    if disk is None:
        raise ImageNotBuilt(
            f"The disk of the image variant {name!r} has not been made.",
            remedy=f"Make it: microvm image build --variant {name}",
        )
    return disk
