"""CPUID made true for vCPU i of n, leaf by leaf. On any system."""

import struct

import pytest

from microvm_kvm._cpuid import CpuidEntry, empty_table, normalise, pack, unpack

INTEL, AMD = b"GenuineIntel", b"AuthenticAMD"
PLACES = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (6, 7), (15, 16), (253, 254)]


def vendor(name: bytes) -> CpuidEntry:
    ebx, edx, ecx = struct.unpack("<3I", name)
    return leaf(0, ebx=ebx, ecx=ecx, edx=edx, eax=0x1F)


def leaf(
    function: int,
    subleaf: int = 0,
    *,
    eax: int = 0,
    ebx: int = 0,
    ecx: int = 0,
    edx: int = 0,
    flags: int = 0,
) -> CpuidEntry:
    return CpuidEntry(function, subleaf, flags, eax, ebx, ecx, edx)


def of(
    supported: list[CpuidEntry], index: int = 0, count: int = 1, *, tsc_deadline: bool = True
) -> dict[tuple[int, int], CpuidEntry]:
    entries = normalise(supported, index=index, count=count, tsc_deadline=tsc_deadline)
    table = {(entry.function, entry.subleaf): entry for entry in entries}
    assert len(table) == len(entries), "a leaf is there twice"
    return table


def bits(value: int, high: int, low: int) -> int:
    return value >> low & (1 << high - low + 1) - 1


def test_a_table_survives_packing() -> None:
    entries = (leaf(0, eax=1, ebx=2, ecx=3, edx=4), leaf(4, 3, flags=1, eax=2**32 - 1))
    assert unpack(pack(entries)) == entries
    assert len(pack(entries)) == 8 + 2 * 40
    assert unpack(empty_table(2)) == (leaf(0), leaf(0))


@pytest.mark.parametrize(("index", "count"), PLACES)
def test_leaf_1_has_the_apic_id_and_the_number_of_ids(index: int, count: int) -> None:
    host = leaf(1, ebx=0xAB_CD_08_00, edx=0)
    ebx = of([vendor(INTEL), host], index, count)[1, 0].ebx
    assert bits(ebx, 31, 24) == index
    assert bits(ebx, 23, 16) >= min(count, 255)
    assert bits(ebx, 15, 0) == 0x0800  # the CLFLUSH size is the host's


@pytest.mark.parametrize("count", [1, 2, 254])
def test_htt_says_whether_there_is_more_than_one(count: int) -> None:
    for host in (0, 1 << 28):
        edx = of([vendor(INTEL), leaf(1, edx=host)], 0, count)[1, 0].edx
        assert bool(edx & 1 << 28) == (count > 1)


@pytest.mark.parametrize("deadline", [False, True])
def test_leaf_1_says_hypervisor_no_pdcm_and_the_deadline_timer_by_capability(
    deadline: bool,
) -> None:
    for host in (0, 2**32 - 1):
        ecx = of([leaf(1, ecx=host)], tsc_deadline=deadline)[1, 0].ecx
        assert ecx & 1 << 31
        assert not ecx & 1 << 15
        assert bool(ecx & 1 << 24) == deadline
        rest = ~(1 << 31 | 1 << 15 | 1 << 24) & 0xFFFF_FFFF
        assert ecx & rest == host & rest


@pytest.mark.parametrize(("index", "count"), PLACES)
def test_the_first_two_cache_levels_are_a_cores_own_and_the_third_is_shared(
    index: int, count: int
) -> None:
    levels = [(1, 1), (2, 1), (3, 2), (3, 3)]  # data, code, unified, unified
    host = [
        leaf(4, i, eax=kind | level << 5 | 0x1FF << 14 | 0x3F << 26, ebx=7, ecx=8)
        for i, (kind, level) in enumerate(levels)
    ]
    table = of([vendor(INTEL), *host, leaf(4, 4)], index, count)
    for i, (kind, level) in enumerate(levels):
        eax = table[4, i].eax
        assert bits(eax, 25, 14) + 1 >= (count if level == 3 else 1)
        assert (bits(eax, 25, 14) == 0) == (level < 3 or count == 1)
        assert bits(eax, 31, 26) + 1 >= min(count, 64)
        assert (bits(eax, 4, 0), bits(eax, 7, 5)) == (kind, level)
        assert (table[4, i].ebx, table[4, i].ecx) == (7, 8)
    assert table[4, 4] == leaf(4, 4)  # the end of the list


@pytest.mark.parametrize("function", [0xB, 0x1F])
@pytest.mark.parametrize(("index", "count"), PLACES)
def test_levels_are_one_thread_a_core_and_the_cores_of_one_package(
    function: int, index: int, count: int
) -> None:
    host = [leaf(function, i, flags=1, eax=i + 1, ebx=99, edx=0x77) for i in range(2)]
    table = of([vendor(INTEL), *host], index, count)
    smt, core, end = (table[function, i] for i in range(3))
    assert (smt.eax, smt.ebx, smt.ecx) == (0, 1, 0x100)
    assert (core.ebx, core.ecx) == (count, 0x201)
    assert (end.ebx, end.ecx) == (0, 2)
    assert smt.edx == core.edx == end.edx == index
    # All of them are in one package: their ids differ in the bits that number its cores alone.
    assert count - 1 >> core.eax == 0
    assert core.eax == 0 or count - 1 >> core.eax - 1
    assert {entry.flags for entry in (smt, core, end)} == {1}


@pytest.mark.parametrize(("index", "count"), PLACES)
def test_amd_counts_cores_in_its_own_leaves(index: int, count: int) -> None:
    host = [
        leaf(0x8000_0001, ecx=1 << 22),
        leaf(0x8000_0008, eax=0x3030, ecx=0x7_5ABC),
        leaf(0x8000_001D, 3, eax=3 | 3 << 5 | 0xFFF << 14),
        leaf(0x8000_001D, 0, eax=1 | 1 << 5 | 0xFFF << 14),
        leaf(0x8000_001E, eax=0x55, ebx=0x0155, ecx=0x0707),
    ]
    table = of([vendor(AMD), *host], index, count)
    features = table[0x8000_0001, 0].ecx
    assert features & 1 << 22  # TOPOEXT stays
    assert bool(features & 2) == (count > 1)
    sizes = table[0x8000_0008, 0]
    assert bits(sizes.ecx, 7, 0) == count - 1
    assert 1 << bits(sizes.ecx, 15, 12) >= count
    assert (sizes.eax, sizes.ecx >> 16, bits(sizes.ecx, 11, 8)) == (0x3030, 7, 0xA)
    assert bits(table[0x8000_001D, 3].eax, 25, 14) + 1 >= count
    assert bits(table[0x8000_001D, 0].eax, 25, 14) == 0
    ids = table[0x8000_001E, 0]
    assert (ids.eax, ids.ebx, ids.ecx) == (index, index, 0)


def test_amds_leaves_are_left_alone_elsewhere() -> None:
    host = [
        leaf(0x8000_0001, ecx=0x121, edx=5),
        leaf(0x8000_0008, eax=0x3030, ecx=0xABC),
        leaf(0x8000_001E, eax=1, ebx=2, ecx=3),
    ]
    for first in ([vendor(INTEL)], []):
        table = of([*first, *host], 1, 4)
        assert [table[entry.function, 0] for entry in host] == host


def test_there_are_no_performance_counters() -> None:
    assert of([leaf(0xA, eax=0x0830_0802, ebx=1, ecx=2, edx=3)])[0xA, 0] == leaf(0xA)


@pytest.mark.parametrize("name", [INTEL, AMD])
@pytest.mark.parametrize(("index", "count"), PLACES)
def test_no_leaf_is_added_or_lost(name: bytes, index: int, count: int) -> None:
    everything = [0, 1, 4, 6, 7, 0xA, 0xB, 0xD, 0x1F, 0x4000_0000, 0x4000_0001]
    everything += [0x8000_0000, 0x8000_0001, 0x8000_0008, 0x8000_001D, 0x8000_001E]
    for missing in [None, *everything[1:]]:
        functions = [function for function in everything if function != missing]
        host = [vendor(name), *(leaf(function, eax=0x21) for function in functions[1:])]
        assert {function for function, _ in of(host, index, count)} == set(functions)


def test_what_is_not_of_topology_is_the_hosts() -> None:
    host = [
        leaf(6, eax=4),
        leaf(7, flags=1, eax=2, ebx=0xFFFF, ecx=3, edx=4),
        leaf(0xD, 1, flags=1, eax=0xF),
        leaf(0x4000_0000, eax=0x4000_0001, ebx=0x4B4D564B),
        leaf(0x4000_0001, eax=0x0100_7EFB),
    ]
    assert list(of([vendor(INTEL), *host], 1, 2).values())[1:] == host
