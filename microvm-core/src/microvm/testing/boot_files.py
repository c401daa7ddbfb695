"""Files that look like kernels and are not, for tests that boot nothing.

`bzimage` and `elf` make them as bytes, with whatever is to be wrong with them; `tiny_kernel`
writes a good one. Each is valid to the letter by default, and small.
"""

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

ENTRY = 0x100_0000
PVH_ENTRY = ENTRY + 0x850

PT_LOAD, PT_NOTE = 1, 4


def bzimage(
    *,
    setup_sectors: int = SETUP_SECTORS,
    paragraphs: int | None = None,
    boot_flag: int = 0xAA55,
    jump: int = 0x6A,
    version: int = PROTOCOL,
    loadflags: int = 1,
    initrd_addr_max: int = 0x7FFF_FFFF,
    kernel_alignment: int = 0x20_0000,
    xloadflags: int = XLF_KERNEL_64,
    cmdline_size: int = 2047,
    payload: tuple[int, int] = (0, 0),
    pref_address: int = ENTRY,
    init_size: int = 0x100_0000,
    code: bytes = PAYLOAD,
) -> bytes:
    """A bzImage (Linux/x86 boot protocol) whose protected-mode part is `code`.

    Args:
        setup_sectors: As in the header; 0 stands for 4.
        paragraphs: The size of the protected-mode part in the header, by default that of `code`.
        boot_flag: These and the others are the fields of the header.
        jump: The byte at 0x201, by which the header ends at 0x202 + this.
        version: Of the protocol.
        loadflags: LOADED_HIGH.
        initrd_addr_max: The highest address for a byte of the initrd.
        kernel_alignment: A power of two.
        xloadflags: XLF_KERNEL_64.
        cmdline_size: Without the NUL byte.
        payload: Offset and length.
        pref_address: Where it is to be loaded.
        init_size: What it takes from there on.
        code: A multiple of 16 bytes, unless something is to be wrong.
    """
    image = bytearray(SECTOR * (1 + (setup_sectors or 4)))
    image[0x1F1] = setup_sectors
    struct.pack_into("<I", image, 0x1F4, len(code) // 16 if paragraphs is None else paragraphs)
    struct.pack_into("<H", image, 0x1FE, boot_flag)
    image[0x201] = jump
    struct.pack_into("<4sH", image, 0x202, b"HdrS", version)
    image[0x211] = loadflags
    struct.pack_into("<II", image, 0x22C, initrd_addr_max, kernel_alignment)
    struct.pack_into("<HI", image, 0x236, xloadflags, cmdline_size)
    struct.pack_into("<II", image, 0x248, *payload)
    struct.pack_into("<QI", image, 0x258, pref_address, init_size)
    return bytes(image) + code


def tiny_kernel(path: Path) -> Path:
    """Write a bzImage of 2 KiB, valid to the letter and empty inside."""
    path.write_bytes(bzimage())
    return path


def note(owner: bytes, kind: int, desc: bytes, align: int = 4) -> bytes:
    """An ELF note, padded."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % align)

    head = struct.pack("<III", len(owner), len(desc), kind) + owner
    return padded(head) + padded(desc)


PVH_NOTE = note(b"Xen\0", 18, struct.pack("<Q", PVH_ENTRY))


def segment(
    kind: int,
    offset: int,
    filesz: int,
    memsz: int | None = None,
    paddr: int = ENTRY,
    align: int = 4,
) -> bytes:
    """A program header; `memsz` is `filesz` by default."""
    memsz = filesz if memsz is None else memsz
    vaddr = (0xFFFF_FFFF_8000_0000 + paddr) % (1 << 64)
    return struct.pack("<IIQQQQQQ", kind, 5, offset, vaddr, paddr, filesz, memsz, align)


def elf(
    *segments: bytes,
    notes: bytes = PVH_NOTE,
    machine: int = 62,
    kind: int = 2,
    entry: int = ENTRY,
    count: int | None = None,
    entry_size: int = 56,
    table: int = 64,
    ident: bytes = b"\x7fELF\x02\x01\x01",
    code: bytes = bytes(0x1000),
) -> bytes:
    """An ELF kernel: headers, notes at 0x400, and `code` from 0x1000 on.

    Args:
        segments: Program headers; by default one for `code` at `ENTRY` and one for `notes`.
        notes: Up to 3 KiB.
        machine: These and the others are fields of the ELF header.
        kind: e_type.
        entry: e_entry.
        count: e_phnum, by default as many as there are.
        entry_size: e_phentsize.
        table: e_phoff; the program headers follow the header whatever it says.
        ident: The first bytes.
        code: What is loaded.
    """
    headers = b"".join(
        segments or (segment(PT_LOAD, 0x1000, len(code)), segment(PT_NOTE, 0x400, len(notes)))
    )
    head = ident.ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH",
        kind,
        machine,
        1,
        entry,
        table,
        0,
        0,
        64,
        entry_size,
        len(headers) // 56 if count is None else count,
        0,
        0,
        0,
    )
    return ((head + headers).ljust(0x400, b"\0") + notes).ljust(0x1000, b"\0") + code
