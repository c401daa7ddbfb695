"""Telling x86_64 kernels from everything else, and whole ones from truncated ones. Pure.

A file is read through `ReadAt` in a few small pieces, whatever it claims about itself.
"""

from __future__ import annotations

from microvm.boot.elf import ELF_MAGIC, ElfKernel, parse_elf
from microvm.boot.reading import KernelFormatError, ReadAt
from microvm.boot.setup_header import HEADER_BYTES, SetupHeader, is_bzimage, parse_setup_header

CPIO_MAGICS = (b"070701", b"070702")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
}


def identify_kernel(read_at: ReadAt, size: int) -> ElfKernel | SetupHeader:
    """Recognise a kernel for x86_64, and say what loading it needs to know.

    Args:
        read_at: Reads the file.
        size: The file's size in bytes.

    Raises:
        KernelFormatError: it is something else, for another machine, or cut short.
    """
    head = read_at(0, HEADER_BYTES)
    if head[:4] == ELF_MAGIC:
        return parse_elf(read_at, size)
    if is_bzimage(head):
        return parse_setup_header(head, size)
    raise KernelFormatError(_what_else(head))


def is_kernel(head: bytes) -> bool:
    """Whether the first `HEADER_BYTES` of a file look like a kernel's."""
    return head[:4] == ELF_MAGIC or is_bzimage(head)


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
