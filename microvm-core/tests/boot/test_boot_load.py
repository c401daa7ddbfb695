"""Kernels are put where they ask to be, and nothing that a file claims is believed."""

import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.abc import MachinePlan
from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.registers import DescriptorTable, RegisterValue, Segment
from microvm.boot import protocols
from microvm.boot.files import kernel_head
from microvm.config import MachineConfig
from microvm.errors import ConfigError, ImageError
from microvm.memory import GuestMemory
from microvm.testing.boot_files import (
    ENTRY,
    PT_LOAD,
    PT_NOTE,
    PVH_ENTRY,
    PVH_NOTE,
    bzimage,
    elf,
    note,
    segment,
)
from microvm.timeline import BootTimeline

MIB = 1 << 20
CODE = bytes(range(256)) * 16
INITRD = b"070701" + b"init" * 1000
NO_NOTE = note(b"GNU\0", 3, bytes(20))
NOTES = segment(PT_NOTE, 0x400, len(PVH_NOTE))
CMDLINE = "console=ttyS0 quiet"

Registers = Mapping[str, RegisterValue]


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.anonymous(64 * MIB)


class Loader:
    """Writes files, has them loaded as the engine does, and remembers what came of it."""

    def __init__(self, folder: Path, memory: GuestMemory) -> None:
        self.kernel, self.initrd, self.memory = folder / "kernel", folder / "initrd", memory

    def plan(self, cmdline: str = CMDLINE) -> MachinePlan:
        return MachinePlan(
            config=MachineConfig(),
            kernel=self.kernel,
            initrd=self.initrd if self.initrd.exists() else None,
            cmdline=cmdline,
            devices=(),
            timeline=BootTimeline(),
        )

    def load(
        self, kernel: bytes, *, initrd: bytes | None = INITRD, cmdline: str = CMDLINE
    ) -> Registers:
        self.kernel.write_bytes(kernel)
        if initrd is not None:
            self.initrd.write_bytes(initrd)
        protocol = protocols.recognise(kernel_head(self.kernel), "x86_64")
        assert protocol is not None
        return protocol.load(self.plan(cmdline), self.memory)

    def refusal(self, kernel: bytes, **more: object) -> str:
        with pytest.raises(ImageError) as caught:
            self.load(kernel, **more)  # type: ignore[arg-type]
        assert caught.value.remedy
        return caught.value.message

    def u32(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 4), "little")

    def u64(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 8), "little")


@pytest.fixture
def loader(tmp_path: Path, memory: GuestMemory) -> Loader:
    return Loader(tmp_path, memory)


# --- bzImage -----------------------------------------------------------------------------------


def test_a_bzimage_lies_at_its_preferred_address_without_its_real_mode_part(
    loader: Loader,
) -> None:
    registers = loader.load(bzimage(code=CODE, pref_address=0x60_0000))
    assert loader.memory.read(0x60_0000, len(CODE) + 4) == CODE + bytes(4)
    assert registers["rip"] == 0x60_0200


def test_what_follows_a_bzimage_in_its_file_is_not_loaded(loader: Loader) -> None:
    loader.load(bzimage(code=CODE) + b"signature")
    assert loader.memory.read(ENTRY + len(CODE), 9) == bytes(9)


def test_the_zero_page_has_the_kernels_header_and_our_answers(loader: Loader) -> None:
    kernel = bzimage(code=CODE)
    loader.load(kernel)
    page = loader.memory.read(layout.ZERO_PAGE, 0x1000)
    answers = {0x210: 1, 0x218: 8, 0x228: 4}
    expected = bytearray(kernel[0x1F1:0x26C])
    for at, length in answers.items():
        expected[at - 0x1F1 : at - 0x1F1 + length] = page[at : at + length]
    assert page[0x1F1:0x26C] == expected
    assert page[0x210] == 0xFF
    ramdisk, size = struct.unpack_from("<II", page, 0x218)
    assert loader.memory.read(ramdisk, size) == INITRD
    (cmdline,) = struct.unpack_from("<I", page, 0x228)
    assert loader.memory.read(cmdline, len(CMDLINE) + 1) == CMDLINE.encode() + b"\0"
    assert struct.unpack_from("<Q", page, 0x70) == (layout.ACPI_TABLES,)
    assert page[0x1EF] == 0  # the sentinel, which says that we cleared what we don't know
    assert not any(page[0x26C:0x2D0])


def test_the_zero_page_maps_the_memory(loader: Loader) -> None:
    loader.load(bzimage())
    page = loader.memory.read(layout.ZERO_PAGE, 0x1000)
    entries = list(struct.iter_unpack("<QQI", page[0x2D0 : 0x2D0 + 20 * page[0x1E8]]))
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xE0000, 0x20000, 2),
        (0x100000, 63 * MIB, 1),
    ]
    assert not any(page[0x2D0 + 20 * len(entries) :])


def test_a_header_that_claims_more_than_its_slot_is_cut_there(loader: Loader) -> None:
    """Row 69."""
    kernel = bytearray(bzimage(jump=0xFF))
    kernel[0x268:0x310] = b"\xee" * (0x310 - 0x268)
    loader.load(bytes(kernel))
    page = loader.memory.read(layout.ZERO_PAGE, 0x1000)
    assert page[0x28F] == 0xEE
    assert not any(page[0x290:0x2D0])
    assert page[0x1E8] == 4  # the memory map's count, beside the header


def test_without_an_initrd_the_zero_page_names_none(loader: Loader) -> None:
    loader.load(bzimage(), initrd=None)
    assert loader.u64(layout.ZERO_PAGE + 0x218) == 0


def is_flat(value: RegisterValue, *, code: bool, long: int, db: int) -> bool:
    assert isinstance(value, Segment)
    return (
        (value.base, value.limit, value.present, value.s) == (0, 0xFFFF_FFFF, 1, 1)
        and value.type == (0xB if code else 0x3)
        and (value.long, value.db) == (long, db)
    )


def test_the_64_bit_entry_state_is_the_protocols(loader: Loader) -> None:
    registers = loader.load(bzimage())
    assert is_flat(registers["cs"], code=True, long=1, db=0)
    for name in ("ds", "es", "fs", "gs", "ss"):
        assert is_flat(registers[name], code=False, long=0, db=1)
    cs, ds, tr = registers["cs"], registers["ds"], registers["tr"]
    assert isinstance(cs, Segment)
    assert isinstance(ds, Segment)
    assert isinstance(tr, Segment)
    assert (cs.selector, ds.selector) == (0x10, 0x18)  # __BOOT_CS, __BOOT_DS
    assert (tr.type, tr.s, tr.present) == (0xB, 0, 1)  # busy, as VMX demands
    assert registers["cr0"] == 0x8000_0011
    assert registers["cr3"] == layout.PML4
    assert registers["cr4"] == 0x20
    assert registers["efer"] == 0x500
    assert registers["rflags"] == 2
    assert registers["rsi"] == layout.ZERO_PAGE
    assert registers["rsp"] == layout.BOOT_STACK


@pytest.mark.parametrize("kernel", [bzimage(), elf(), elf(notes=NO_NOTE)])
def test_the_segment_registers_are_what_the_gdt_would_have_given(
    loader: Loader, kernel: bytes
) -> None:
    registers = loader.load(kernel)
    gdt = registers["gdt"]
    assert isinstance(gdt, DescriptorTable)
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr"):
        held = registers[name]
        assert isinstance(held, Segment)
        assert held.selector + 7 <= gdt.limit
        descriptor = loader.u64(gdt.base + held.selector)
        assert held == Segment.from_descriptor(held.selector, descriptor)


def walk(loader: Loader, table: int, address: int) -> int:
    """Where the CPU's page walk ends, by the SDM and not by our constants."""
    for shift in (39, 30, 21):
        entry = loader.u64(table + 8 * (address >> shift & 0x1FF))
        assert entry & 3 == 3
        table = entry & 0x000F_FFFF_FFFF_F000
        if entry & 0x80:
            return table + (address & (1 << shift) - 1)
    raise AssertionError("the tables have large pages only")


@pytest.mark.parametrize("address", [0, 0x7000, 0x2_0000, ENTRY, 0x1234_5678, (1 << 30) - 1])
def test_the_first_gib_is_mapped_to_itself(loader: Loader, address: int) -> None:
    registers = loader.load(bzimage())
    cr3 = registers["cr3"]
    assert isinstance(cr3, int)
    assert walk(loader, cr3, address) == address


# --- ELF ---------------------------------------------------------------------------------------


def test_an_elf_kernels_segments_lie_at_their_physical_addresses(loader: Loader) -> None:
    loader.load(
        elf(
            segment(PT_LOAD, 0x1800, 0x800, paddr=ENTRY + 0x8000),
            segment(PT_LOAD, 0x1000, 0x800, memsz=0x4000),
            NOTES,
            code=CODE,
        )
    )
    assert loader.memory.read(ENTRY, 0x4000) == CODE[:0x800].ljust(0x4000, b"\0")
    assert loader.memory.read(ENTRY + 0x8000, 0x800) == CODE[0x800:]


def test_an_elf_kernel_with_a_pvh_note_is_entered_by_it(
    loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="microvm.boot")
    registers = loader.load(elf())
    assert registers["rip"] == PVH_ENTRY
    assert is_flat(registers["cs"], code=True, long=0, db=1)
    for name in ("ds", "es", "ss"):
        assert is_flat(registers[name], code=False, long=0, db=1)
    tr = registers["tr"]
    assert isinstance(tr, Segment)
    assert (tr.base, tr.limit, tr.type, tr.s) == (0, 0x67, 0xB, 0)
    assert registers["cr0"] == 0x11
    assert registers["cr4"] == 0
    assert registers["efer"] == 0
    assert registers["rflags"] == 2
    assert registers["rbx"] == layout.PVH_START_INFO
    assert f"PVH entry at {PVH_ENTRY:#x}" in caplog.text


def test_an_elf_kernel_with_a_pvh_note_may_have_any_other_entry(loader: Loader) -> None:
    assert loader.load(elf(entry=0xFFFF_FFFF_8100_0000))["rip"] == PVH_ENTRY


def test_an_elf_kernel_without_one_is_entered_in_64_bit_mode(
    loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="microvm.boot")
    registers = loader.load(elf(notes=NO_NOTE))
    assert registers["rip"] == ENTRY
    assert registers["efer"] == 0x500
    assert loader.memory.read(layout.ZERO_PAGE + 0x1FE, 8) == b"\x55\xaa\0\0HdrS"
    assert loader.u32(layout.ZERO_PAGE + 0x230) == 0x100_0000
    assert "no PVH entry; 64-bit entry at 0x1000000" in caplog.text


def test_the_pvh_start_info_leads_to_everything(loader: Loader) -> None:
    loader.load(elf())
    info = loader.memory.read(layout.PVH_START_INFO, 56)
    magic, version, flags, modules = struct.unpack_from("<4I", info)
    module_list, cmdline, rsdp, memory_map = struct.unpack_from("<4Q", info, 16)
    entries, reserved = struct.unpack_from("<II", info, 48)
    assert (magic, version, flags, modules, reserved) == (0x336EC578, 1, 0, 1, 0)
    assert rsdp == layout.ACPI_TABLES
    assert loader.memory.read(cmdline, len(CMDLINE) + 1) == CMDLINE.encode() + b"\0"
    address, size, words, zero = struct.unpack("<4Q", loader.memory.read(module_list, 32))
    assert (words, zero) == (0, 0)
    assert loader.memory.read(address, size) == INITRD
    table = loader.memory.read(memory_map, 24 * entries)
    assert list(struct.iter_unpack("<QQII", table)) == [
        (0, 0x9FC00, 1, 0),
        (0x9FC00, 0x400, 2, 0),
        (0xE0000, 0x20000, 2, 0),
        (0x100000, 63 * MIB, 1, 0),
    ]


def test_without_an_initrd_there_is_no_pvh_module(loader: Loader) -> None:
    loader.load(elf(), initrd=None)
    assert loader.u32(layout.PVH_START_INFO + 12) == 0
    assert loader.u64(layout.PVH_START_INFO + 16) == 0


@pytest.mark.parametrize("kernel", [bzimage(), elf(), elf(notes=NO_NOTE)])
def test_every_general_register_is_set(loader: Loader, kernel: bytes) -> None:
    registers = loader.load(kernel)
    expected = {
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
        *(f"r{number}" for number in range(8, 16)),
        *("rip", "rflags", "cr0", "cr3", "cr4", "efer"),
        *("cs", "ds", "es", "fs", "gs", "ss", "tr", "gdt", "idt"),
    }
    assert set(registers) == expected


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


# --- the initrd and the command line -----------------------------------------------------------


def test_the_initrd_lies_page_aligned_at_the_end_of_memory(loader: Loader) -> None:
    loader.load(bzimage())
    start = loader.u32(layout.ZERO_PAGE + 0x218)
    assert start % 0x1000 == 0
    assert 64 * MIB - 0x1000 < start + len(INITRD) <= 64 * MIB


def test_the_initrd_ends_where_the_kernel_can_reach(loader: Loader) -> None:
    loader.load(bzimage(initrd_addr_max=0x2FF_FFFF))
    end = loader.u32(layout.ZERO_PAGE + 0x218) + len(INITRD)
    assert 48 * MIB - 0x1000 < end <= 48 * MIB


@pytest.mark.parametrize("kernel", [bzimage(), elf()], ids=["bzimage", "elf"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (bytes(48 * MIB), "its 48 MiB don't fit beside the kernel")],
    ids=["empty", "large"],
)
def test_an_initrd_that_can_not_be_loaded_is_refused_by_name(
    loader: Loader, kernel: bytes, content: bytes, reason: str
) -> None:
    """Row 75."""
    message = loader.refusal(kernel, initrd=content)
    assert f"The initrd {loader.initrd} can't be used: {reason}" in message


def test_an_initrd_out_of_the_kernels_reach_is_refused(loader: Loader) -> None:
    """Row 75."""
    assert "don't fit" in loader.refusal(bzimage(initrd_addr_max=0xF_FFFF))
    assert "don't fit" in loader.refusal(bzimage(initrd_addr_max=0))


def test_a_missing_initrd_is_refused(loader: Loader) -> None:
    loader.kernel.write_bytes(bzimage())
    loader.initrd.touch()
    plan = loader.plan()
    loader.initrd.unlink()
    with pytest.raises(ImageError, match=r"initrd .* no such file"):
        protocols.BZIMAGE.load(plan, loader.memory)


@pytest.mark.parametrize(
    ("kernel", "limit"),
    [(bzimage(cmdline_size=255), 255), (bzimage(cmdline_size=2**32 - 1), 2047), (elf(), 2047)],
)
def test_a_command_line_is_as_long_as_the_kernel_takes_and_no_longer(
    loader: Loader, kernel: bytes, limit: int
) -> None:
    """Row 70."""
    loader.load(kernel, cmdline="a" * limit)
    assert loader.memory.read(layout.CMDLINE, limit + 1) == b"a" * limit + b"\0"
    message = loader.refusal(kernel, cmdline="a" * (limit + 1))
    assert f"a command line of {limit} bytes, and this machine's has {limit + 1}" in message


@pytest.mark.parametrize("line", ["a\0b", "a\nb", "a\tb", "ä", "a\x7f"])
def test_a_command_line_that_is_no_line_of_ascii_is_refused(loader: Loader, line: str) -> None:
    """Row 70."""
    with pytest.raises(ConfigError, match="one line of printable ASCII"):
        loader.load(bzimage(), cmdline=line)


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
