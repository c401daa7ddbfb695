"""GuestMemory: the one way in, and what it refuses. Numbers are rows of the hazard catalogue."""

import mmap
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import GuestMemoryError
from microvm.memory import GuestMemory, GuestRegion


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


def test_30_u16_cells_are_little_endian_and_aligned(two_regions: GuestMemory) -> None:
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
