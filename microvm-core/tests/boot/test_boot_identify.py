"""Kernels are recognised from bytes alone: whole ones, cut ones, and what is no kernel."""

import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microvm.boot.elf import (
    MAX_NOTE_BYTES,
    MAX_PROGRAM_HEADERS,
    ElfKernel,
    iter_notes,
    parse_elf,
)
from microvm.boot.identify import identify_kernel
from microvm.boot.reading import KernelFormatError, ReadAt
from microvm.boot.setup_header import (
    HEADER_BYTES,
    HEADER_LIMIT,
    HEADER_START,
    SetupHeader,
    parse_setup_header,
)
from microvm.testing.boot_files import ENTRY, PVH_ENTRY, bzimage, elf, note, segment


def identify(data: bytes) -> ElfKernel | SetupHeader:
    return identify_kernel(lambda at, length: data[at : at + length], len(data))


def read_elf(data: bytes) -> ElfKernel:
    return parse_elf(lambda at, length: data[at : at + length], len(data))


def read_header(data: bytes) -> SetupHeader:
    return parse_setup_header(data[:HEADER_BYTES], len(data))


def test_an_elf_kernel_with_a_pvh_note_has_both_entry_points() -> None:
    found = identify(elf())
    assert isinstance(found, ElfKernel)
    assert (found.entry, found.pvh_entry) == (ENTRY, PVH_ENTRY)


def test_an_elf_kernel_without_a_pvh_note_has_its_64_bit_entry() -> None:
    found = read_elf(elf(notes=note(b"GNU\0", 3, bytes(20))))
    assert found.pvh_entry is None
    assert found.entry == ENTRY


@pytest.mark.parametrize("size", [4, 8])
def test_a_pvh_entry_is_told_in_four_or_eight_bytes(size: int) -> None:
    notes = note(b"GNU\0", 3, bytes(20)) + note(b"Xen\0", 18, PVH_ENTRY.to_bytes(size, "little"))
    assert read_elf(elf(notes=notes)).pvh_entry == PVH_ENTRY


def test_the_segments_to_load_are_those_that_take_memory() -> None:
    empty = segment(1, 0, 0, paddr=0)
    found = read_elf(elf(empty, segment(1, 0x1000, 0x800, memsz=0x900), notes=b""))
    (only,) = found.segments
    assert (only.offset, only.filesz, only.paddr, only.end) == (0x1000, 0x800, ENTRY, ENTRY + 0x900)


def test_a_bzimage_tells_its_boot_protocol() -> None:
    found = identify(bzimage())
    assert isinstance(found, SetupHeader)
    assert (found.version, found.has_64bit_entry) == (0x020F, True)
    assert (found.setup_bytes, found.protected_bytes) == (2 * 512, 64 * 16)


def test_a_bzimage_with_no_setup_sector_count_has_four() -> None:
    assert read_header(bzimage(setup_sectors=0)).setup_bytes == 5 * 512
    with pytest.raises(KernelFormatError, match="cut short"):
        identify(bzimage(setup_sectors=0)[:-1])


@pytest.mark.parametrize(("version", "flags"), [(0x020B, 0x7F), (0x020C, 0x7E)])
def test_a_64_bit_entry_needs_protocol_2_12_and_the_flag(version: int, flags: int) -> None:
    assert not read_header(bzimage(version=version, xloadflags=flags)).has_64bit_entry


@pytest.mark.parametrize(
    ("jump", "length"), [(0x6A, 0x26C - HEADER_START), (0xFF, HEADER_LIMIT - HEADER_START)]
)
def test_the_header_ends_where_it_says_and_no_later_than_its_slot(jump: int, length: int) -> None:
    data = bzimage(jump=jump)
    assert read_header(data).raw == data[HEADER_START : HEADER_START + length]


def test_bytes_after_a_bzimage_are_none_of_its_business() -> None:
    assert identify(bzimage() + b"signature") == identify(bzimage())


@pytest.mark.parametrize("whole", [elf(), bzimage()], ids=["elf", "bzimage"])
def test_a_kernel_cut_anywhere_is_refused(whole: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(KernelFormatError):
            identify(whole[:length])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0", "too few"),
        (bytes(4096), "neither"),
        (b"070701" + bytes(4096), "cpio"),
        (b"\x1f\x8b" + bytes(4096), "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(4096), "zstd"),
        (b"\xfd7zXZ\0" + bytes(4096), "xz"),
        (bytes(56) + b"ARM\x64" + bytes(4096), "arm64"),
        (bytes(510) + b"\x55\xaa" + bytes(4096), "disk image"),
        (elf(machine=183), "arm64"),
        (elf(machine=3), "machine 3"),
        (elf(ident=b"\x7fELF\x01\x01\x01"), "64-bit"),
        (elf(ident=b"\x7fELF\x02\x02\x01"), "little-endian"),
        (elf(kind=1), "object file"),
        (elf(segment(3, 0x400, 16), segment(1, 0x1000, 0x1000)), "a program"),
        (elf(segment(7, 0x400, 16), segment(1, 0x1000, 0x1000)), "a program"),
        (elf(segment(4, 0x400, 16)), "nothing to load"),
        (elf(segment(1, 0x1000, 0x1000, memsz=1)), "larger in the file"),
        (elf(segment(1, 0x1000, 0x1001)), "cut short"),
        (elf(segment(1, 0x1000, 2**64 - 1)), "cut short"),
        (elf(segment(1, 0x1000, 16, memsz=2**60)), "beyond any physical"),
        (elf(entry=0, notes=b""), "entry point 0x0"),
        (elf(notes=note(b"Xen\0", 18, bytes(8))), "PVH entry point 0x0"),
        (elf(count=0), "0 program headers"),
        (elf(count=MAX_PROGRAM_HEADERS + 1), "65 program headers"),
        (bzimage(boot_flag=0), "boot flag"),
        (bzimage(version=0x0205), "protocol 2.05"),
        (bzimage(loadflags=0), "zImage"),
        (bzimage(paragraphs=0), "no protected-mode part"),
    ],
)
def test_what_is_no_kernel_is_named(data: bytes, reason: str) -> None:
    """Rows 67, 68 and 71."""
    with pytest.raises(KernelFormatError, match=reason):
        identify(data)


def test_a_multiboot_header_makes_no_kernel_of_a_file() -> None:
    """Row 74: that protocol is not offered."""
    header = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFF_FFFF)
    with pytest.raises(KernelFormatError, match="neither"):
        identify(header + bytes(4096))


def test_notes_are_read_whole_or_not_at_all() -> None:
    two = note(b"GNU\0", 1, b"abc") + note(b"Xen\0", 18, bytes(8))
    assert list(iter_notes(two)) == [(b"GNU\0", 1, b"abc"), (b"Xen\0", 18, bytes(8))]
    for length in range(len(two)):
        assert len(list(iter_notes(two[:length]))) <= 1


def test_notes_may_be_aligned_to_eight() -> None:
    two = note(b"GNU\0", 5, b"abc", align=8) + note(b"Xen\0", 18, bytes(4), align=8)
    assert [kind for _, kind, _ in iter_notes(two, 8)] == [5, 18]


def counting(data: bytes) -> tuple[ReadAt, Callable[[], int]]:
    total = 0

    def read_at(at: int, length: int) -> bytes:
        nonlocal total
        assert length >= 0
        total += length
        return data[at : at + length] if at < len(data) else b""

    return read_at, lambda: total


# Segments that all claim to be notes, as large as can be.
GREEDY = elf(segment(1, 0x1000, 0x1000), *[segment(4, 0x400, 2**63)] * (MAX_PROGRAM_HEADERS - 1))
READ_LIMIT = HEADER_BYTES + MAX_PROGRAM_HEADERS * (56 + MAX_NOTE_BYTES)


@given(st.binary(max_size=2048) | st.binary(max_size=2048).map(lambda tail: b"\x7fELF" + tail))
@example(GREEDY)
def test_whatever_a_file_claims_little_of_it_is_read(data: bytes) -> None:
    """Rows 71 and 72: no allocation by what a header says."""
    read_at, total = counting(data)
    with suppress(KernelFormatError):
        identify_kernel(read_at, len(data))
    assert total() <= READ_LIMIT


@given(
    base=st.sampled_from([elf(), bzimage()]),
    changes=st.lists(st.tuples(st.integers(0, 0x480), st.integers(0, 255)), max_size=8),
)
def test_a_kernel_with_any_bytes_changed_is_known_or_refused(
    base: bytes, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(base)
    for at, value in changes:
        data[at] = value
    with suppress(KernelFormatError):
        assert isinstance(identify(bytes(data)), ElfKernel | SetupHeader)
