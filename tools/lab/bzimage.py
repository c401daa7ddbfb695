"""The kernel inside a bzImage. Pure.

A bzImage unpacks itself, in emulation some 3 s for what takes half a second here, once. QEMU loads
the ELF file from inside it by its PVH entry note.

Source: Linux, Documentation/x86/boot.rst, "The Real-Mode Kernel Header": setup_sects,
payload_offset, payload_length (protocol 2.08 and up).
"""

from __future__ import annotations

import lzma
import struct

_XZ = b"\xfd7zXZ\x00"


def vmlinux(bzimage: bytes) -> bytes | None:
    """The ELF file that was compressed; None if by something else than xz."""
    setup_sects = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sects + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if not payload.startswith(_XZ):
        return None
    # Behind the stream there are four more bytes, its length unpacked.
    return lzma.LZMADecompressor().decompress(payload)
