"""Kernels are put where they ask to be, and entered in the state that their protocol asks for."""

import struct

import pytest

from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.registers import DescriptorTable, RegisterValue, Segment
from microvm.testing.boot_files import ENTRY, PT_LOAD, PVH_ENTRY, bzimage, elf, segment

from .kernel_loader import CMDLINE, CODE, INITRD, MIB, NO_NOTE, NOTES, Loader

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
