"""Nothing that is needed at boot lies upon anything else."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.arch.x86_64 import layout
from microvm.boot.reading import DoesNotFit, KernelFormatError
from microvm.boot.x86.e820 import MAX_ENTRIES, RAM, E820Entry, memory_map
from microvm.boot.x86.initrd import place_initrd
from microvm.boot.x86.placement import BOOT_STRUCTURES, Span, check_kernel_span, low_ram_end
from microvm.memory import GuestMemory, GuestRegion

MIB = 1 << 20
PAGE = 0x1000


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations(BOOT_STRUCTURES, 2)), ids=lambda name: name
)
def test_no_two_boot_structures_overlap(one: str, other: str) -> None:
    """Row 69."""
    assert not BOOT_STRUCTURES[one].overlaps(BOOT_STRUCTURES[other])


@pytest.mark.parametrize("name", BOOT_STRUCTURES)
def test_every_boot_structure_lies_below_the_kernel(name: str) -> None:
    span = BOOT_STRUCTURES[name]
    assert 0 < span.start < span.end <= layout.HIGH_MEMORY


@pytest.mark.parametrize("name", sorted(set(BOOT_STRUCTURES) - {"MP table", "ACPI tables"}))
def test_a_structure_is_ram_in_the_map_or_reserved(name: str) -> None:
    """The kernel copies those out of RAM early; the tables it reads when it likes."""
    (low, *_) = memory_map(GuestMemory.anonymous(2 * MIB).regions)
    assert low.type == RAM
    assert BOOT_STRUCTURES[name].end <= low.start + low.length


def test_the_largest_memory_map_fits_into_both_its_places() -> None:
    """Row 69."""
    pvh = BOOT_STRUCTURES["PVH memory map"]
    assert pvh.length >= MAX_ENTRIES * 24
    assert 0x2D0 + MAX_ENTRIES * 20 <= PAGE


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_spans_overlap_if_and_only_if_they_share_an_address(a: int, b: int, c: int, d: int) -> None:
    one, other = Span(min(a, b), max(a, b)), Span(min(c, d), max(c, d))
    shared = set(range(one.start, one.end)) & set(range(other.start, other.end))
    assert one.overlaps(other) == other.overlaps(one) == bool(shared) or not (
        one.length and other.length
    )


# --- the kernel --------------------------------------------------------------------------------


def test_a_kernel_may_take_exactly_what_lies_above_1_mib() -> None:
    check_kernel_span(Span(MIB, 64 * MIB), 64 * MIB)
    with pytest.raises(KernelFormatError, match="below 1 MiB"):
        check_kernel_span(Span(MIB - 1, 64 * MIB), 64 * MIB)
    with pytest.raises(DoesNotFit, match="up to 65 MiB and does not fit into 64 MiB"):
        check_kernel_span(Span(MIB, 64 * MIB + 1), 64 * MIB)


def test_more_memory_is_no_remedy_for_a_kernel_in_the_device_hole() -> None:
    with pytest.raises(KernelFormatError, match="there is none"):
        check_kernel_span(Span(MIB, layout.HOLE_START + 1), layout.HOLE_START)


def test_low_memory_ends_where_the_first_region_or_the_hole_does() -> None:
    assert low_ram_end(GuestMemory.anonymous(64 * MIB)) == 64 * MIB
    both = [GuestRegion(start=at, view=memoryview(bytearray(64))) for at in (0, 1 << 32)]
    assert low_ram_end(GuestMemory(both)) == 64
    with pytest.raises(ValueError, match="begins at 0"):
        low_ram_end(GuestMemory.anonymous(64 * MIB, start=MIB))


# --- the initrd --------------------------------------------------------------------------------

KERNEL = Span(16 * MIB, 33 * MIB)


def place(size: int, *, ram: int = 64 * MIB, highest: int = 0x7FFF_FFFF) -> Span:
    return place_initrd(size, kernel=KERNEL, ram_end=ram, highest=highest)


def test_an_initrd_lies_as_high_as_can_be() -> None:
    assert place(PAGE) == Span(64 * MIB - PAGE, 64 * MIB)
    assert place(1) == Span(64 * MIB - PAGE, 64 * MIB - PAGE + 1)
    assert place(31 * MIB) == Span(33 * MIB, 64 * MIB)


def test_an_initrd_lies_below_the_kernel_if_there_is_no_room_above() -> None:
    assert place(PAGE, ram=33 * MIB) == Span(16 * MIB - PAGE, 16 * MIB)
    assert place(15 * MIB, ram=33 * MIB) == Span(MIB, 16 * MIB)
    assert place(PAGE, highest=20 * MIB) == Span(16 * MIB - PAGE, 16 * MIB)
    assert place(PAGE, highest=8 * MIB - 1) == Span(8 * MIB - PAGE, 8 * MIB)


def test_an_initrd_never_reaches_into_the_device_hole() -> None:
    assert place(1, ram=1 << 40, highest=2**32 - 1).end <= layout.HOLE_START


@pytest.mark.parametrize(
    ("size", "ram", "highest"),
    [
        (31 * MIB + 1, 64 * MIB, 2**32 - 1),
        (15 * MIB + 1, 33 * MIB, 2**32 - 1),
        (1, 64 * MIB, MIB - 1),
        (1, 64 * MIB, 0),
        (1 << 62, 64 * MIB, 2**32 - 1),
    ],
)
def test_an_initrd_without_a_place_is_refused(size: int, ram: int, highest: int) -> None:
    """Row 75."""
    with pytest.raises(DoesNotFit, match="don't fit beside the kernel"):
        place(size, ram=ram, highest=highest)


@given(
    size=st.integers(1, 70 * MIB),
    start=st.integers(MIB, 60 * MIB),
    length=st.integers(1, 60 * MIB),
    ram=st.integers(MIB, 80 * MIB),
    highest=st.integers(0, 2**32 - 1),
)
def test_wherever_an_initrd_lies_it_is_nowhere_that_it_must_not_be(
    size: int, start: int, length: int, ram: int, highest: int
) -> None:
    """Rows 69 and 75."""
    kernel = Span(start, start + length)
    try:
        span = place_initrd(size, kernel=kernel, ram_end=ram, highest=highest)
    except DoesNotFit:
        return
    assert span.length == size
    assert span.start % PAGE == 0
    assert span.start >= layout.HIGH_MEMORY
    assert span.end <= ram
    assert span.end - 1 <= highest
    assert not span.overlaps(kernel)


# --- the map -----------------------------------------------------------------------------------


def test_the_map_goes_around_the_hole() -> None:
    memory = GuestMemory(
        GuestRegion(start=start, view=memoryview(bytearray(size)))
        for start, size in ((0, 2 * MIB), (layout.HOLE_END, MIB))
    )
    assert memory_map(memory.regions)[-2:] == (
        E820Entry(MIB, MIB, RAM),
        E820Entry(layout.HOLE_END, MIB, RAM),
    )


def test_the_maps_entries_ascend_and_do_not_overlap() -> None:
    for left, right in itertools.pairwise(memory_map(GuestMemory.anonymous(8 * MIB).regions)):
        assert left.start + left.length <= right.start


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, MIB)],
        [(16, 2 * MIB)],
        [(0, 2 * MIB), *((0x1000_0000 + i * 64, 16) for i in range(125))],
    ],
)
def test_memory_that_no_map_can_tell_is_refused(ranges: list[tuple[int, int]]) -> None:
    regions = [GuestRegion(start=at, view=memoryview(bytearray(size))) for at, size in ranges]
    with pytest.raises(ValueError):
        memory_map(regions)
