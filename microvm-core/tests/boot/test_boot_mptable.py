"""The MP table byte by byte, as the specification's reader walks it."""

import struct
from collections import Counter

import pytest

from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.board import MAX_VCPU_COUNT, BoardDescription
from microvm.boot.x86.mptable import MAX_PROCESSORS, mp_table

LENGTHS = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def parts(vcpu_count: int) -> tuple[bytes, bytes]:
    """Floating pointer and table, found as a kernel does."""
    data = mp_table(BoardDescription(vcpu_count=vcpu_count))
    (table,) = struct.unpack_from("<I", data, 4)
    return data[:16], data[table - layout.EBDA :]


def entries(vcpu_count: int) -> list[bytes]:
    table = parts(vcpu_count)[1]
    found, at = [], 44
    while at < len(table):
        length = LENGTHS[table[at]]
        found.append(table[at : at + length])
        at += length
    assert at == len(table)
    return found


COUNTS = (1, 2, MAX_PROCESSORS, MAX_VCPU_COUNT)


@pytest.mark.parametrize("count", COUNTS)
def test_the_pointer_is_valid(count: int) -> None:
    pointer, _ = parts(count)
    assert pointer[:4] == b"_MP_"
    assert pointer[8:10] == b"\x01\x04"  # one paragraph, MP 1.4
    assert not any(pointer[11:])  # a table is present, and the PIC mode is not implemented
    assert sum(pointer) % 256 == 0


@pytest.mark.parametrize("count", COUNTS)
def test_the_header_is_valid(count: int) -> None:
    _, table = parts(count)
    assert table[:4] == b"PCMP"
    assert struct.unpack_from("<H", table, 4) == (len(table),)
    assert table[6] == 4
    assert sum(table) % 256 == 0
    assert struct.unpack_from("<HI", table, 34) == (len(entries(count)), layout.LOCAL_APIC)


@pytest.mark.parametrize("count", COUNTS)
def test_it_fits_into_the_extended_bios_data_area(count: int) -> None:
    size = len(mp_table(BoardDescription(vcpu_count=count)))
    assert size <= layout.EBDA_END - layout.EBDA
    assert size == 284 + 20 * min(count, MAX_PROCESSORS)


@pytest.mark.parametrize("count", COUNTS)
def test_entries_are_sorted_by_type(count: int) -> None:
    kinds = [entry[0] for entry in entries(count)]
    assert kinds == sorted(kinds)
    assert Counter(kinds) == {0: min(count, MAX_PROCESSORS), 1: 1, 2: 1, 3: 24, 4: 2}


def test_the_first_cpu_boots_and_all_are_enabled() -> None:
    cpus = [entry for entry in entries(3) if entry[0] == 0]
    assert [(cpu[1], cpu[3]) for cpu in cpus] == [(0, 3), (1, 1), (2, 1)]


def test_each_pin_of_the_io_apic_has_the_interrupt_of_its_number() -> None:
    found = entries(2)
    (io_apic,) = [entry for entry in found if entry[0] == 2]
    assert io_apic[1] == 2  # an id that no CPU has
    assert io_apic[3] == 1
    assert struct.unpack_from("<I", io_apic, 4) == (layout.IO_APIC,)
    pins = [struct.unpack("<BBHBBBB", entry) for entry in found if entry[0] == 3]
    assert pins == [(3, 0, 0, 0, pin, 2, pin) for pin in range(24)]


def test_lint0_has_the_pic_and_lint1_the_nmi() -> None:
    local = [struct.unpack("<BBHBBBB", entry) for entry in entries(2) if entry[0] == 4]
    assert local == [(4, 3, 0, 0, 0, 0, 0), (4, 1, 0, 0, 0, 0xFF, 1)]
