"""Nothing that a kernel's file claims is believed: it holds together, or it is refused."""

import os
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.arch.x86_64 import layout
from microvm.boot import protocols
from microvm.errors import ImageError
from microvm.memory import GuestMemory
from microvm.testing.boot_files import ENTRY, PT_LOAD, PVH_ENTRY, bzimage, elf, note, segment

from .kernel_loader import CODE, INITRD, MIB, NO_NOTE, NOTES, Loader

# --- refused: bzImage --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (bzimage(xloadflags=0), "no 64-bit entry"),
        (bzimage(version=0x020B), "no 64-bit entry"),
        (bzimage(version=0x0205), "protocol 2.05"),
        (bzimage(boot_flag=0), "boot flag"),
        (bzimage(loadflags=0), "zImage"),
        (bzimage(paragraphs=0), "no protected-mode part"),
        (bzimage(paragraphs=0xFFFF_FFFF), "cut short"),
        (bzimage(setup_sectors=255)[: 256 * 512], "cut short"),
        (bzimage(setup_sectors=0)[: 5 * 512], "cut short"),
        (bzimage(code=bytes(0x200)), "before its 64-bit entry point"),
        (bzimage(jump=0x61), "its header ends at 0x263"),
        (bzimage(payload=(1, 1024)), "its payload ends at 0x401"),
        (bzimage(payload=(0xFFFF_FFFF, 0xFFFF_FFFF)), "its payload ends at"),
        (bzimage(kernel_alignment=0), "alignment 0x0 is no power of two"),
        (bzimage(kernel_alignment=0x30_0000), "no power of two"),
        (bzimage(pref_address=ENTRY + 0x1000), "not aligned to 0x200000"),
        (bzimage(pref_address=0), "below 1 MiB"),
        (bzimage(pref_address=0x1_0000_0000), "from 0xc0000000 on there is none"),
        (bzimage(pref_address=0xFFFF_FFFF_FFE0_0000), "there is none"),
        (bzimage(init_size=0xFFFF_FFFF), "there is none"),
        (bzimage(pref_address=0x400_0000), "up to 80 MiB and does not fit into 64 MiB"),
        (bzimage(init_size=48 * MIB + 1), "up to 65 MiB and does not fit into 64 MiB"),
    ],
)
def test_a_bzimage_that_contradicts_itself_or_us_is_refused(
    loader: Loader, kernel: bytes, reason: str
) -> None:
    """Row 68."""
    message = loader.refusal(kernel)
    assert reason in message
    assert str(loader.kernel) in message


def test_a_kernel_that_takes_all_there_is_fits(loader: Loader) -> None:
    loader.load(bzimage(init_size=48 * MIB))


def test_a_64_bit_entry_is_mapped_or_refused(loader: Loader) -> None:
    loader.memory = GuestMemory.anonymous(2048 * MIB)
    high = (1 << 30) - 0x20_0000
    assert "only the first 1024 MiB are mapped" in loader.refusal(
        bzimage(pref_address=high, init_size=0x20_0001)
    )
    loader.load(bzimage(pref_address=high, init_size=0x20_0000))
    far = [segment(PT_LOAD, 0x1000, 0x1000, paddr=1 << 30)]
    assert "are mapped" in loader.refusal(elf(*far, entry=1 << 30))
    with_note = [*far, NOTES]
    notes = note(b"Xen\0", 18, struct.pack("<I", 1 << 30))
    loader.load(elf(*with_note, entry=1 << 30, notes=notes))


# --- refused: ELF ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (elf(count=0), "0 program headers"),
        (elf(count=0xFFFF), "65535 program headers"),
        (elf(entry_size=55), "program headers of 55 bytes"),
        (elf(table=0x2000), "its program headers are missing"),
        (elf(table=2**64 - 1), "its program headers are missing"),
        (elf(segment(PT_LOAD, 0x1000, 0x1001)), "cut short"),
        (elf(segment(PT_LOAD, 2**64 - 1, 2, memsz=2)), "cut short"),
        (elf(segment(PT_LOAD, 0x1000, 0x1000, memsz=0xFFF)), "larger in the file"),
        (elf(segment(PT_LOAD, 0x1000, 16, memsz=2**60)), "beyond any physical"),
        (elf(segment(PT_LOAD, 0x1000, 16, memsz=2**50), NOTES), "there is none"),
        (elf(segment(PT_LOAD, 0x1000, 16, memsz=49 * MIB), NOTES), "does not fit into 64 MiB"),
        (
            elf(
                segment(PT_LOAD, 0x1000, 0x1000),
                segment(PT_LOAD, 0x1000, 16, paddr=ENTRY + 0xFFF),
                NOTES,
            ),
            "two of its segments overlap at 0x1000fff",
        ),
        (
            elf(
                segment(PT_LOAD, 0x1000, 16, paddr=ENTRY + 0x800),
                segment(PT_LOAD, 0x1000, 0x1000),
                NOTES,
            ),
            "overlap",
        ),
        (
            elf(segment(PT_LOAD, 0x1000, 16, paddr=0x7000), segment(PT_LOAD, 0x1000, 0x1000)),
            "it is to be loaded at 0x7000, below 1 MiB",
        ),
        (
            elf(segment(PT_LOAD, 0x1000, 16, paddr=0xD000_0000), segment(PT_LOAD, 0x1000, 0x1000)),
            "there is none",
        ),
        (elf(entry=ENTRY + 0x1000, notes=NO_NOTE), "entry point 0x1001000 lies in none"),
        (elf(notes=note(b"Xen\0", 18, struct.pack("<Q", 1 << 32))), "PVH entry point 0x100000000"),
        (elf(segment(3, 0x400, 16), segment(PT_LOAD, 0x1000, 0x1000)), "a program"),
    ],
)
def test_an_elf_kernel_that_contradicts_itself_or_us_is_refused(
    loader: Loader, kernel: bytes, reason: str
) -> None:
    """Row 71."""
    message = loader.refusal(kernel)
    assert reason in message
    assert str(loader.kernel) in message


@pytest.mark.parametrize(
    "notes",
    [
        struct.pack("<III", 2**32 - 1, 8, 18) + b"Xen\0" + bytes(8),
        struct.pack("<III", 4, 2**32 - 1, 18) + b"Xen\0" + bytes(8),
        note(b"Xen\0", 18, bytes(5)),
        note(b"Xen\0", 17, struct.pack("<Q", PVH_ENTRY)),
        note(b"Xeno", 18, struct.pack("<Q", PVH_ENTRY)),
        b"",
    ],
)
def test_a_broken_note_is_no_pvh_entry(loader: Loader, notes: bytes) -> None:
    """Row 72."""
    assert loader.load(elf(notes=notes))["rip"] == ENTRY


@pytest.mark.parametrize("size", [4, 8])
def test_a_pvh_entry_may_be_told_in_four_or_eight_bytes(loader: Loader, size: int) -> None:
    """Row 72."""
    notes = note(b"Xen\0", 18, PVH_ENTRY.to_bytes(size, "little"))
    assert loader.load(elf(notes=notes))["rip"] == PVH_ENTRY


@pytest.mark.parametrize("whole", [elf(), bzimage()], ids=["elf", "bzimage"])
def test_a_kernel_cut_anywhere_is_not_loaded(loader: Loader, whole: bytes) -> None:
    """Row 67."""
    for length in (*range(1, 0x300), len(whole) - 1):
        loader.kernel.write_bytes(whole[:length])
        protocol = protocols.ELF if whole[0] == 0x7F else protocols.BZIMAGE
        with pytest.raises(ImageError):
            protocol.load(loader.plan(), loader.memory)


HEADERS = st.sampled_from([elf(), elf(notes=NO_NOTE), bzimage(), bzimage(jump=0xFF)])
WORD = st.sampled_from(
    [0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 20, 1 << 30, 1 << 31, (1 << 32) - 1, 1 << 52, (1 << 64) - 1]
) | st.integers(0, (1 << 64) - 1)
CHANGE = st.tuples(st.integers(0, 0x2C0), st.sampled_from([1, 2, 4, 8]), WORD)


@settings(max_examples=300, deadline=2000)
@given(base=HEADERS, changes=st.lists(CHANGE, min_size=1, max_size=6))
def test_a_kernel_with_any_fields_changed_is_loaded_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    base: bytes,
    changes: list[tuple[int, int, int]],
) -> None:
    """Rows 68, 69, 71 and 72, fuzzed."""
    data = bytearray(base)
    for at, size, value in changes:
        data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    loader = Loader(tmp_path_factory.mktemp("any"), GuestMemory.anonymous(64 * MIB))
    loader.kernel.write_bytes(data)
    loader.initrd.write_bytes(INITRD)
    for protocol in (protocols.ELF, protocols.BZIMAGE):
        with suppress(ImageError):
            registers = protocol.load(loader.plan(), loader.memory)
            entry = registers["rip"]
            assert isinstance(entry, int)
            assert layout.HIGH_MEMORY <= entry < 64 * MIB


# --- files that change, and descriptors --------------------------------------------------------


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 67 and 79."""
    whole = os.preadv

    def shrinks(descriptor: int, buffers: list[memoryview], at: int) -> int:
        os.truncate(loader.kernel, 1500)
        return whole(descriptor, buffers, at)

    monkeypatch.setattr(os, "preadv", shrinks)
    assert "became shorter while it was read" in loader.refusal(bzimage())


def test_a_file_is_read_whole_though_each_read_is_short(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole(fd, [buffers[0][:100]], at))
    loader.load(bzimage(code=CODE))
    assert loader.memory.read(ENTRY, len(CODE)) == CODE


@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_a_fifo_in_place_of_a_file_is_refused_without_waiting(loader: Loader, name: str) -> None:
    loader.kernel.write_bytes(bzimage())
    (loader.kernel.parent / name).unlink(missing_ok=True)
    os.mkfifo(loader.kernel.parent / name)
    with pytest.raises(ImageError, match=f"The {name} .* a FIFO"):
        protocols.BZIMAGE.load(loader.plan(), loader.memory)


@pytest.mark.parametrize(
    "load",
    [
        lambda loader: loader.load(bzimage()),
        lambda loader: loader.load(elf()),
        lambda loader: loader.refusal(bzimage(kernel_alignment=0)),
        lambda loader: loader.refusal(elf(), initrd=b""),
    ],
)
def test_no_descriptor_is_left_open(loader: Loader, load: Callable[[Loader], object]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    load(loader)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [1, 4095, MIB // 16 * 16, MIB + 16])
def test_a_guest_without_room_for_anything_is_refused(loader: Loader, size: int) -> None:
    loader.memory = GuestMemory.anonymous(size)
    for kernel in (bzimage(), elf()):
        assert "does not fit into" in loader.refusal(kernel)
