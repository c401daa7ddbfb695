"""ELF kernels for x86_64: their segments and entry points, from bytes alone. Pure.

Sources:

* ELF-64 Object File Format 1.5, "File header" and "Program header table"; System V ABI,
  chapter 5, "Note Section".
* PVH: Xen, docs/misc/pvh.pandoc, and Linux, Documentation/arch/x86/boot.rst: the note
  XEN_ELFNOTE_PHYS32_ENTRY (18) of owner "Xen" holds the 32-bit entry point.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from microvm.boot.reading import KernelFormatError, ReadAt

ELF_MAGIC = b"\x7fELF"
HEADER_BYTES = 64
PROGRAM_HEADER_BYTES = 56
MAX_PROGRAM_HEADERS = 64
"""vmlinux has five. Bounds how much of a header table is read."""
MAX_NOTE_BYTES = 64 * 1024

EM_X86_64 = 62
EM_AARCH64 = 183
ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_INTERP, PT_NOTE, PT_TLS = 1, 3, 4, 7
XEN_ELFNOTE_PHYS32_ENTRY = 18


@attrs.frozen
class ElfSegment:
    """A program header, its fields in the order of the file."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    @property
    def end(self) -> int:
        """The physical address behind its last byte."""
        return self.paddr + self.memsz


@attrs.frozen(kw_only=True)
class ElfKernel:
    """What an uncompressed kernel (vmlinux) says about itself."""

    entry: int
    """Physical address of the 64-bit entry point. With a PVH entry it may be anything: kernels
    made for that alone have a virtual address here."""
    pvh_entry: int | None
    """Physical address of the 32-bit PVH entry point, if there is one."""
    segments: tuple[ElfSegment, ...]
    """What is to be loaded, in the order of the file; each has its bytes there."""


def is_x86_64_elf(head: bytes) -> bool:
    """Whether a file that begins so is a 64-bit ELF file for x86_64."""
    return (
        len(head) >= HEADER_BYTES
        and head[:6] == ELF_MAGIC + b"\x02\x01"
        and int.from_bytes(head[18:20], "little") == EM_X86_64
    )


def parse_elf(read_at: ReadAt, size: int) -> ElfKernel:
    """Read the headers of an ELF kernel.

    Raises:
        KernelFormatError: it is no kernel, for another machine, or cut short.
    """
    head = read_at(0, HEADER_BYTES)
    if len(head) < HEADER_BYTES:
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
    if entry_size != PROGRAM_HEADER_BYTES or not 0 < count <= MAX_PROGRAM_HEADERS:
        raise KernelFormatError(f"it has {count} program headers of {entry_size} bytes")
    length = count * PROGRAM_HEADER_BYTES
    raw = read_at(table, length) if table < size else b""
    if len(raw) < length:
        raise KernelFormatError("it is cut short: its program headers are missing")
    segments = [ElfSegment(*fields) for fields in struct.iter_unpack("<IIQQQQQQ", raw)]
    if any(segment.type in (PT_INTERP, PT_TLS) for segment in segments):
        raise KernelFormatError("it is a program, not a kernel")
    loads = tuple(s for s in segments if s.type == PT_LOAD and (s.memsz or s.filesz))
    _check_loads(loads, size)
    pvh = _pvh_entry(segments, read_at, size)
    name, used = ("entry point", entry) if pvh is None else ("PVH entry point", pvh)
    if not any(s.paddr <= used < s.end for s in loads):
        raise KernelFormatError(f"its {name} {used:#x} lies in none of its segments")
    return ElfKernel(entry=entry, pvh_entry=pvh, segments=loads)


def _check_loads(loads: tuple[ElfSegment, ...], size: int) -> None:
    if not loads:
        raise KernelFormatError("it has nothing to load")
    for segment in loads:
        if segment.filesz > segment.memsz:
            raise KernelFormatError("one of its segments is larger in the file than in memory")
        if segment.offset + segment.filesz > size:
            raise KernelFormatError(
                f"it is cut short: {size} of {segment.offset + segment.filesz} bytes"
            )
        if segment.end > 1 << 52:
            raise KernelFormatError("one of its segments lies beyond any physical address")


def _pvh_entry(segments: list[ElfSegment], read_at: ReadAt, size: int) -> int | None:
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
