"""Files that look like kernels and are not, for tests that boot nothing."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SETUP_SECTORS = 1
SECTOR = 512
PAYLOAD = bytes(16 * 64)
PROTOCOL = 0x020F
XLF_KERNEL_64 = 1


def tiny_kernel(path: Path) -> Path:
    """Write a bzImage of 2 KiB, valid to the letter (Linux/x86 boot protocol) and empty inside."""
    image = bytearray(SECTOR * (1 + SETUP_SECTORS))
    image[0x1F1] = SETUP_SECTORS
    struct.pack_into("<I", image, 0x1F4, len(PAYLOAD) // 16)  # syssize
    struct.pack_into("<H", image, 0x1FE, 0xAA55)  # boot_flag
    image[0x201] = 0x6A  # the header ends at 0x202 + this
    struct.pack_into("<4sH", image, 0x202, b"HdrS", PROTOCOL)
    image[0x211] = 1  # loadflags: LOADED_HIGH
    struct.pack_into("<I", image, 0x230, 0x200000)  # kernel_alignment
    struct.pack_into("<H", image, 0x236, XLF_KERNEL_64)
    struct.pack_into("<I", image, 0x238, 2047)  # cmdline_size
    struct.pack_into("<QI", image, 0x258, 0x1000000, 0x1000000)  # pref_address, init_size
    path.write_bytes(bytes(image) + PAYLOAD)
    return path
