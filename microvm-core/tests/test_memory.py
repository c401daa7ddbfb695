"""GuestMemory: the one way in, and what it refuses. Numbers are rows of the hazard catalogue."""

import fcntl
import gc
import mmap
import os
import resource
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import BackendError, GuestMemoryError
from microvm.memory import GuestMemory, GuestRegion, page_reclaim


def region(start: int, length: int) -> GuestRegion:
    return GuestRegion(start=start, view=memoryview(bytearray(length)))


@pytest.fixture
def two_regions() -> GuestMemory:
    """RAM at 0x1000 to 0x2000 and at 0x4000 to 0x5000."""
    return GuestMemory([region(0x4000, 0x1000), region(0x1000, 0x1000)])


def test_a_slice_is_the_guests_own_memory(two_regions: GuestMemory) -> None:
    two_regions.slice(0x1FF0, 16)[:] = b"0123456789abcdef"
    assert two_regions.read(0x1FF8, 8) == b"89abcdef"
    two_regions.write(0x4000, b"hello")
    assert bytes(two_regions.slice(0x4000, 5)) == b"hello"


def test_regions_are_told_in_order_of_address(two_regions: GuestMemory) -> None:
    assert [(one.start, one.end) for one in two_regions.regions] == [
        (0x1000, 0x2000),
        (0x4000, 0x5000),
    ]
    assert 0x1000 in two_regions.regions[0]
    assert 0x2000 not in two_regions.regions[0]


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0x0FFF, 2),  # begins before RAM
        (0x1FFF, 2),  # leaves it
        (0x1000, 0x1001),
        (0x2000, 1),  # the gap
        (0x1800, 0x3000),  # both regions and the gap
        (0x5000, 1),
        (1 << 64, 1),
        ((1 << 64) - 1, 2),  # would wrap to 0 in a machine's integers
        ((1 << 64) - 0x1000, 0x3000),
        (0x1000, (1 << 64) - 0x1000),
        (-1, 1),
        (0x1800, -1),
    ],
)
def test_22_a_range_not_wholly_in_one_region_is_refused(
    two_regions: GuestMemory, address: int, length: int
) -> None:
    for access in (two_regions.slice, two_regions.read):
        with pytest.raises(GuestMemoryError):
            access(address, length)


@given(address=st.integers(0, 1 << 64), length=st.integers(0, 1 << 64))
def test_22_slice_gives_exactly_what_was_asked_or_refuses(address: int, length: int) -> None:
    memory = GuestMemory([region(0x1000, 0x1000), region(0x4000, 0x1000)])
    inside = any(one.start <= address and address + length <= one.end for one in memory.regions)
    if inside:
        assert len(memory.slice(address, length)) == length
    else:
        with pytest.raises(GuestMemoryError):
            memory.slice(address, length)


@given(
    address=st.integers(0x0F00, 0x4100),
    length=st.one_of(st.integers(0, 0x3000), st.integers(0, 1 << 64)),
)
def test_22_slices_follow_ram_from_region_to_region_and_never_leave_it(
    address: int, length: int
) -> None:
    memory = GuestMemory([region(0x1000, 0x1000), region(0x2000, 0x1000), region(0x3800, 0x100)])
    ram = [*range(0x1000, 0x3000), *range(0x3800, 0x3900)]
    if not length or (
        address in ram and address + length <= (0x3000 if address < 0x3000 else 0x3900)
    ):
        assert sum(map(len, memory.slices(address, length))) == length
    else:
        with pytest.raises(GuestMemoryError):
            memory.slices(address, length)


def test_a_write_that_does_not_fit_writes_nothing(two_regions: GuestMemory) -> None:
    with pytest.raises(GuestMemoryError):
        two_regions.write(0x1FFC, b"12345678")
    assert two_regions.read(0x1FFC, 4) == bytes(4)


def test_row_30_u16_cells_are_little_endian_and_aligned(two_regions: GuestMemory) -> None:
    two_regions.store_u16(0x1002, 0xABCD)
    assert two_regions.read(0x1000, 6) == struct.pack("<HHH", 0, 0xABCD, 0)
    assert two_regions.load_u16(0x1002) == 0xABCD
    with pytest.raises(ValueError, match="aligned"):
        two_regions.load_u16(0x1003)
    with pytest.raises(ValueError, match="aligned"):
        two_regions.store_u16(0x1003, 1)
    with pytest.raises(ValueError):
        two_regions.store_u16(0x1002, 0x1_0000)
    with pytest.raises(GuestMemoryError):
        two_regions.load_u16(0x2000)


@pytest.mark.parametrize(
    ("start", "view", "reason"),
    [
        (0x1000, memoryview(bytes(16)), "writable"),
        (0x1000, memoryview(bytearray(16)).cast("H"), "bytes"),
        (0x1000, memoryview(bytearray(16))[::2], "contiguous"),
        (0x1000, memoryview(bytearray()), "at least one"),
        (0x1008, memoryview(bytearray(16)), "aligned"),
        (-16, memoryview(bytearray(16)), "address space"),
        ((1 << 64) - 16, memoryview(bytearray(32)), "address space"),
    ],
)
def test_a_region_that_exists_is_valid(start: int, view: memoryview, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        GuestRegion(start=start, view=view)


def test_regions_must_be_there_and_not_overlap() -> None:
    with pytest.raises(ValueError, match="at least one"):
        GuestMemory([])
    with pytest.raises(ValueError, match="overlap"):
        GuestMemory([region(0x1000, 0x1000), region(0x1FF0, 0x10)])
    GuestMemory([region(0x1000, 0x1000), region(0x2000, 0x10)])


def test_anonymous_memory_is_zeros_at_its_address() -> None:
    memory = GuestMemory.anonymous(0x3000, start=0x10000)
    assert memory.read(0x10000, 0x3000) == bytes(0x3000)
    with pytest.raises(GuestMemoryError):
        memory.read(0, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_memory_that_the_host_does_not_give_is_told_and_what_it_gave_is_given_back() -> None:
    """Row 98."""
    before = address_space()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (before + (1 << 30), limits[1]))
    try:
        with pytest.raises(BackendError, match="can't give 1073741824 bytes") as caught:
            GuestMemory.for_ranges([(0, 512 << 20), (4 << 30, 1 << 30)])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert "mem_size_mib" in (caught.value.remedy or "")
    del caught  # whose frames hold what was given
    gc.collect()
    assert address_space() - before < 64 << 20


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def test_released_memory_refuses_everything_and_lets_its_mapping_close() -> None:
    mapping = mmap.mmap(-1, 0x1000)
    memory = GuestMemory([GuestRegion(start=0, view=memoryview(mapping))])
    memory.release()
    with pytest.raises(GuestMemoryError):
        memory.slice(0, 1)
    with pytest.raises(GuestMemoryError):
        memory.slices(0, 1)
    mapping.close()


def test_a_slice_that_is_kept_keeps_its_mapping_and_never_dangles() -> None:
    mapping = mmap.mmap(-1, 0x1000)
    memory = GuestMemory([GuestRegion(start=0, view=memoryview(mapping))])
    kept = memory.slice(0, 4)
    memory.release()
    with pytest.raises(BufferError):
        mapping.close()
    kept[:] = b"safe"
    kept.release()
    mapping.close()


def test_a_view_tells_where_it_is(two_regions: GuestMemory) -> None:
    for address in (0x1000, 0x1FFF, 0x4000, 0x4321):
        assert two_regions.address_of(two_regions.slice(address, 1)) == address
    assert two_regions.address_of(two_regions.slice(0x1000, 0x1000)[16:]) == 0x1010
    with pytest.raises(ValueError, match="no view"):
        two_regions.address_of(memoryview(bytearray(16)))


# --- giving memory back ----------------------------------------------------------------------

PAGE = mmap.PAGESIZE
MIB = 1 << 20


def shared_memory(size: int) -> tuple[GuestMemory, int]:
    """Guest memory in a memfd, and the descriptor."""
    fd = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    mapping = mmap.mmap(fd, size)
    reclaim = page_reclaim(mapping, shared=True)
    return GuestMemory([GuestRegion(start=0, view=memoryview(mapping), reclaim=reclaim)]), fd


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="its madvise")
def test_discarded_anonymous_memory_is_the_hosts_again_and_reads_as_zeros() -> None:
    memory = GuestMemory.anonymous(64 * MIB, start=0x10000)
    memory.write(0x10000, b"\xaa" * (64 * MIB))
    before = rss_bytes()
    assert memory.discard(0x10000 + MIB, 62 * MIB) == 62 * MIB
    assert before - rss_bytes() > 60 * MIB
    assert memory.read(0x10000 + MIB - 1, 2) == b"\xaa\0"
    assert memory.read(0x10000 + 63 * MIB - 1, 2) == b"\0\xaa"


@pytest.mark.skipif(sys.platform != "linux", reason="its memfd")
def test_discarded_shared_memory_leaves_the_file_too() -> None:
    memory, fd = shared_memory(8 * MIB)
    try:
        memory.write(0, b"\xaa" * (8 * MIB))
        assert os.fstat(fd).st_blocks * 512 == 8 * MIB
        assert memory.discard(0, 7 * MIB) == 7 * MIB
        assert os.fstat(fd).st_blocks * 512 == MIB
        assert os.fstat(fd).st_size == 8 * MIB
        assert memory.read(7 * MIB - 1, 2) == b"\0\xaa"
    finally:
        os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="its madvise")
def test_pages_that_lie_in_a_range_in_part_are_left_alone() -> None:
    memory = GuestMemory.anonymous(4 * PAGE)
    memory.write(0, b"\xaa" * (4 * PAGE))
    assert memory.discard(1, 2 * PAGE) == PAGE
    assert memory.read(0, PAGE) == b"\xaa" * PAGE
    assert memory.read(PAGE, PAGE) == bytes(PAGE)
    assert memory.read(2 * PAGE, 2 * PAGE) == b"\xaa" * 2 * PAGE
    assert memory.discard(1, PAGE) == 0
    assert memory.discard(0, 0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="its madvise")
def test_pages_are_the_mappings_also_where_a_region_begins_in_the_middle_of_one() -> None:
    """As behind vhost-user: a region of a file of huge pages."""
    with mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        mapping[:] = b"\xaa" * (16 * PAGE)
        reclaim = page_reclaim(mapping, shared=False, skip=2 * PAGE, page=4 * PAGE)
        assert reclaim(0, 8 * PAGE) == 4 * PAGE
        kept = [mapping[at * PAGE] != 0 for at in range(16)]
        assert kept == [True] * 4 + [False] * 4 + [True] * 8


@pytest.mark.skipif(sys.platform != "linux", reason="its madvise")
def test_a_range_may_run_on_from_one_region_into_the_next() -> None:
    memory = GuestMemory.for_ranges([(0, 4 * PAGE), (4 * PAGE, 4 * PAGE)])
    memory.write(0, b"\xaa" * (4 * PAGE))
    memory.write(4 * PAGE, b"\xaa" * (4 * PAGE))
    assert memory.discard(2 * PAGE, 4 * PAGE) == 4 * PAGE
    assert memory.slice(2 * PAGE, 2 * PAGE) == bytes(2 * PAGE)
    assert memory.slice(4 * PAGE, 2 * PAGE) == bytes(2 * PAGE)
    assert memory.read(6 * PAGE, PAGE) == b"\xaa" * PAGE


@pytest.mark.parametrize("address", [-PAGE, 3 * PAGE, 1 << 63])
def test_what_is_not_ram_can_not_be_discarded(address: int) -> None:
    memory = GuestMemory.anonymous(4 * PAGE)
    memory.write(0, b"\xaa" * (4 * PAGE))
    with pytest.raises(GuestMemoryError):
        memory.discard(address, 2 * PAGE)
    assert memory.read(0, 4 * PAGE) == b"\xaa" * (4 * PAGE)
    memory.release()
    with pytest.raises(GuestMemoryError):
        memory.discard(0, PAGE)


def test_memory_that_can_not_be_given_back_stays_as_it_is() -> None:
    plain = GuestMemory([region(0, 4 * PAGE)])
    plain.write(0, b"\xaa")
    assert plain.discard(0, 4 * PAGE) == 0
    assert plain.read(0, 1) == b"\xaa"


@pytest.mark.skipif(sys.platform != "linux", reason="its sealing")
def test_what_the_host_refuses_is_not_counted() -> None:
    memory, fd = shared_memory(4 * PAGE)
    try:
        memory.write(0, b"\xaa")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)  # F_SEAL_FUTURE_WRITE, and a hole is a write
        assert memory.discard(0, 4 * PAGE) == 0
        assert memory.read(0, 1) == b"\xaa"
    finally:
        os.close(fd)
