"""Telling x86_64 kernels from everything else, and whole ones from truncated ones. Pure.

Sources:

* bzImage: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "Details of
  Header Fields".
* ELF: ELF-64 Object File Format 1.5, "File header" and "Program header table"; System V ABI,
  chapter 5, "Note Section".
* PVH: Xen, docs/misc/pvh.pandoc, and Linux, Documentation/arch/x86/boot.rst: the note
  XEN_ELFNOTE_PHYS32_ENTRY (18) of owner "Xen" holds the 32-bit entry point.

A file is read through `ReadAt` in a few small pieces, whatever it claims about itself.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator

import attrs

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)`: that many bytes, fewer where the file ends."""

MAX_PROGRAM_HEADERS = 64
"""vmlinux has five. Bounds how much of a header table is read."""
MAX_NOTE_BYTES = 64 * 1024

EM_X86_64 = 62
EM_AARCH64 = 183
ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_INTERP, PT_NOTE, PT_TLS = 1, 3, 4, 7
XEN_ELFNOTE_PHYS32_ENTRY = 18

MIN_BOOT_PROTOCOL = 0x0206
"""Linux 2.6.22: the first with `cmdline_size`, which every monitor writes."""
HEADER_BYTES = 0x268
"""Up to `handover_offset`, the last field of the header that there is."""
LOADED_HIGH = 0x01
XLF_KERNEL_64 = 0x01

CPIO_MAGICS = (b"070701", b"070702")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
}


class KernelFormatError(ValueError):
    """These bytes are not a kernel that can be booted on x86_64; the message says why."""


class KernelFormat(enum.StrEnum):
    """How a kernel is packed."""

    ELF = "elf"
    """Uncompressed: vmlinux."""
    BZIMAGE = "bzImage"
    """Self-extracting."""


@attrs.frozen(kw_only=True)
class KernelImage:
    """What a kernel file says about itself."""

    format: KernelFormat
    pvh_entry: int | None = None
    """Physical address of the 32-bit PVH entry point (ELF only)."""
    entry: int | None = None
    """Physical address of the 64-bit entry point (ELF), None where the format fixes it."""
    boot_protocol: int | None = None
    """Version of the boot protocol, 0x020F for 2.15 (bzImage only)."""
    has_64bit_entry: bool = True


def identify_kernel(read_at: ReadAt, size: int) -> KernelImage:
    """Recognise a kernel for x86_64.

    Args:
        read_at: Reads the file.
        size: The file's size in bytes.

    Raises:
        KernelFormatError: it is something else, for another machine, or cut short.
    """
    head = read_at(0, HEADER_BYTES)
    if head[:4] == b"\x7fELF":
        return _identify_elf(head, read_at, size)
    if head[0x202:0x206] == b"HdrS":
        return _identify_bzimage(head, size)
    raise KernelFormatError(_what_else(head))


def is_kernel(head: bytes) -> bool:
    """Whether the first `HEADER_BYTES` of a file look like a kernel's."""
    return head[:4] == b"\x7fELF" or head[0x202:0x206] == b"HdrS"


def _what_else(head: bytes) -> str:
    """Name the usual mistakes."""
    if not head:
        return "it is empty"
    if head[:6] in CPIO_MAGICS:
        return "it is a cpio archive, such as an initramfs"
    if head[56:60] == b"ARM\x64":
        return "it is a kernel for arm64"
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"it is compressed with {name}"
    if head[0x1FE:0x200] == b"\x55\xaa":
        return "it is a disk image or boot sector"
    if len(head) < HEADER_BYTES:
        return f"it has {len(head)} bytes, too few for a kernel"
    return "it is neither an ELF file nor a bzImage"


# --- bzImage -------------------------------------------------------------------------------


def _identify_bzimage(head: bytes, size: int) -> KernelImage:
    if len(head) < HEADER_BYTES:
        raise KernelFormatError(f"its header ends after {len(head)} bytes")
    setup_sectors = head[0x1F1] or 4  # 0 means 4
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    (boot_flag,) = struct.unpack_from("<H", head, 0x1FE)
    (version,) = struct.unpack_from("<H", head, 0x206)
    loadflags = head[0x211]
    (xloadflags,) = struct.unpack_from("<H", head, 0x236)
    if boot_flag != 0xAA55:
        raise KernelFormatError(f"its boot flag is {boot_flag:#06x}, not 0xaa55")
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
    needed = (setup_sectors + 1) * 512 + paragraphs * 16
    if size < needed:
        raise KernelFormatError(f"it is cut short: {size} of {needed} bytes")
    return KernelImage(
        format=KernelFormat.BZIMAGE,
        boot_protocol=version,
        has_64bit_entry=version >= 0x020C and bool(xloadflags & XLF_KERNEL_64),
    )


# --- ELF -----------------------------------------------------------------------------------


@attrs.frozen
class _Segment:
    """Fields of a program header that matter here, in the order of the file."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


def _identify_elf(head: bytes, read_at: ReadAt, size: int) -> KernelImage:
    if len(head) < 64:
        raise KernelFormatError(f"its ELF header ends after {len(head)} bytes")
    if head[4:6] != b"\x02\x01":
        raise KernelFormatError("it is not a 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", head, 16)
    entry, table = struct.unpack_from("<QQ", head, 24)
    entry_size, count = struct.unpack_from("<HH", head, 54)
    if machine != EM_X86_64:
        name = "arm64" if machine == EM_AARCH64 else f"ELF machine {machine}"
        raise KernelFormatError(f"it is for {name}, not for x86_64")
    if kind not in (ET_EXEC, ET_DYN):
        raise KernelFormatError("it is an ELF object file or core, not an executable")
    if entry_size != 56 or not 0 < count <= MAX_PROGRAM_HEADERS:
        raise KernelFormatError(f"it has {count} program headers of {entry_size} bytes")
    raw = read_at(table, count * 56) if table < size else b""
    if len(raw) < count * 56:
        raise KernelFormatError("it is cut short: its program headers are missing")
    segments = [_Segment(*fields) for fields in struct.iter_unpack("<IIQQQQQQ", raw)]
    if any(segment.type in (PT_INTERP, PT_TLS) for segment in segments):
        raise KernelFormatError("it is a program, not a kernel")
    loads = [segment for segment in segments if segment.type == PT_LOAD]
    if not loads:
        raise KernelFormatError("it has nothing to load")
    for segment in loads:
        if segment.filesz > segment.memsz:
            raise KernelFormatError("one of its segments is larger in the file than in memory")
        if segment.offset + segment.filesz > size:
            raise KernelFormatError(
                f"it is cut short: {size} of {segment.offset + segment.filesz} bytes"
            )
        if segment.paddr + segment.memsz > 1 << 52:
            raise KernelFormatError("one of its segments lies beyond any physical address")
    pvh = _pvh_entry(segments, read_at, size)
    for name, address in (("entry point", entry), ("PVH entry point", pvh)):
        if address is not None and not any(
            segment.paddr <= address < segment.paddr + segment.memsz for segment in loads
        ):
            raise KernelFormatError(f"its {name} {address:#x} lies in none of its segments")
    return KernelImage(format=KernelFormat.ELF, pvh_entry=pvh, entry=entry)


def _pvh_entry(segments: list[_Segment], read_at: ReadAt, size: int) -> int | None:
    for segment in segments:
        if segment.type != PT_NOTE or segment.offset >= size:
            continue
        align = 8 if segment.align == 8 else 4
        notes = read_at(segment.offset, min(segment.filesz, MAX_NOTE_BYTES))
        for owner, kind, desc in iter_notes(notes, align):
            if owner == b"Xen\0" and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(desc) in (4, 8):
                return int.from_bytes(desc, "little")
    return None


def iter_notes(data: bytes, align: int = 4) -> Iterator[tuple[bytes, int, bytes]]:
    """The notes of a note segment: owner with its NUL byte, type, description.

    Ends quietly at the first note that does not fit into `data`.
    """
    at = 0
    while at + 12 <= len(data):
        name_size, desc_size, kind = struct.unpack_from("<III", data, at)
        name_at = at + 12
        desc_at = -(-(name_at + name_size) // align) * align
        end = desc_at + desc_size
        if end > len(data):
            return
        yield data[name_at : name_at + name_size], kind, data[desc_at:end]
        at = -(-end // align) * align
