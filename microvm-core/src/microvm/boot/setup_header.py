"""The header of a bzImage, from bytes alone. Pure.

Source: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "Details of
Header Fields". Offsets are those of the file, which are those of struct boot_params too.
"""

from __future__ import annotations

import struct

import attrs

from microvm.boot.reading import KernelFormatError

MAGIC_AT, MAGIC = 0x202, b"HdrS"
HEADER_START = 0x1F1
HEADER_LIMIT = 0x290
"""The header's slot in struct boot_params ends here: edd_mbr_sig_buffer comes next."""
HEADER_BYTES = HEADER_LIMIT
"""How much of a file there is to read for it."""
SECTOR = 512
PARAGRAPH = 16

BOOT_FLAG = 0xAA55
MIN_BOOT_PROTOCOL = 0x0206
"""Linux 2.6.22: the first with `cmdline_size`, which every monitor writes."""
PROTOCOL_64BIT = 0x020C
"""Linux 3.8: the first with `xloadflags`."""
LOADED_HIGH = 0x01
XLF_KERNEL_64 = 0x01


@attrs.frozen(kw_only=True)
class SetupHeader:
    """What a bzImage says about itself. Fields newer than `version` hold whatever stood there."""

    version: int
    """Of the boot protocol: 0x020F for 2.15."""
    xloadflags: int
    setup_bytes: int
    """Of the real-mode part: the protected-mode part begins here in the file."""
    protected_bytes: int
    """Of the protected-mode part; all of them are in the file."""
    payload: tuple[int, int]
    """Offset in the protected-mode part, and length, of the compressed kernel."""
    kernel_alignment: int
    cmdline_size: int
    """The longest command line it takes, without the NUL byte."""
    initrd_addr_max: int
    """The highest address that a byte of the initrd may have."""
    pref_address: int
    init_size: int
    """Of the memory that it needs from its start on, to unpack itself and look around."""
    end: int
    """Where the header ends by its own word; what lies behind is code."""
    raw: bytes
    """From `HEADER_START` to `end`, or to `HEADER_LIMIT` if it claims more."""

    @property
    def has_64bit_entry(self) -> bool:
        """Whether it can be entered in long mode, at offset 0x200 of the protected-mode part."""
        return self.version >= PROTOCOL_64BIT and bool(self.xloadflags & XLF_KERNEL_64)


def is_bzimage(head: bytes) -> bool:
    """Whether a file that begins so is a bzImage."""
    return head[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC


def parse_setup_header(head: bytes, size: int) -> SetupHeader:
    """Read the header of a bzImage.

    Args:
        head: The first `HEADER_BYTES` of the file.
        size: The file's size.

    Raises:
        KernelFormatError: it is too old, a zImage, or cut short.
    """
    if len(head) < HEADER_BYTES:
        raise KernelFormatError(f"its header ends after {len(head)} bytes")
    setup_sectors = head[0x1F1] or 4  # 0 means 4
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    (boot_flag,) = struct.unpack_from("<H", head, 0x1FE)
    (version,) = struct.unpack_from("<H", head, 0x206)
    loadflags = head[0x211]
    if boot_flag != BOOT_FLAG:
        raise KernelFormatError(f"its boot flag is {boot_flag:#06x}, not {BOOT_FLAG:#06x}")
    if version < MIN_BOOT_PROTOCOL:
        raise KernelFormatError(
            f"it has boot protocol {version >> 8}.{version & 0xFF:02d}; 2.06 or later is needed"
        )
    if not loadflags & LOADED_HIGH:
        raise KernelFormatError("it is a zImage, made to be loaded below 1 MiB")
    if not paragraphs:
        raise KernelFormatError("it has no protected-mode part")
    # The header counts the boot sector apart from the setup sectors, the rest in 16-byte
    # paragraphs; what follows (a signature) is not counted.
    setup_bytes, protected_bytes = (setup_sectors + 1) * SECTOR, paragraphs * PARAGRAPH
    if size < setup_bytes + protected_bytes:
        raise KernelFormatError(f"it is cut short: {size} of {setup_bytes + protected_bytes} bytes")
    initrd_addr_max, kernel_alignment = struct.unpack_from("<II", head, 0x22C)
    xloadflags, cmdline_size = struct.unpack_from("<HI", head, 0x236)
    payload_offset, payload_length = struct.unpack_from("<II", head, 0x248)
    pref_address, init_size = struct.unpack_from("<QI", head, 0x258)
    # The byte is the distance of a jump over the header that begins behind it.
    end = 0x202 + head[0x201]
    return SetupHeader(
        version=version,
        xloadflags=xloadflags,
        setup_bytes=setup_bytes,
        protected_bytes=protected_bytes,
        payload=(payload_offset, payload_length),
        kernel_alignment=kernel_alignment,
        cmdline_size=cmdline_size,
        initrd_addr_max=initrd_addr_max,
        pref_address=pref_address,
        init_size=init_size,
        end=end,
        raw=head[HEADER_START : min(end, HEADER_LIMIT)],
    )
