"""The numbers of <linux/if_tun.h>, and the calls that carry them."""

from __future__ import annotations

import struct
import sys
from typing import Final

if sys.platform == "linux":
    import fcntl

CLONE_DEVICE: Final = "/dev/net/tun"
MAX_NAME_BYTES: Final = 15
"""IFNAMSIZ, without the NUL byte."""

_TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8

IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_MULTI_QUEUE: Final = 0x0100

TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04

_IFREQ: Final = struct.Struct("16sH22x")
"""struct ifreq with ifr_flags in its union: 40 bytes."""


def set_interface(fd: int, name: str, flags: int) -> None:
    """Make the descriptor a queue of the interface `name`, made anew if there is none.

    Raises:
        OSError: as ioctl(2) says.
    """
    fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))


def interface_flags(fd: int) -> int:
    """The IFF_ flags of the interface that the descriptor is a queue of.

    Raises:
        OSError: it is none.
    """
    answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
    flags: int = _IFREQ.unpack(answer)[1]
    return flags


def set_header_size(fd: int, size: int) -> None:
    """Of the virtio header in front of each frame."""
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", size))


def set_offloads(fd: int, flags: int) -> None:
    """What the descriptor's reader takes unfinished, as TUN_F_ flags. For the whole interface."""
    fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)
