"""Descriptor chains: rows 19 to 27 and 29 of the hazard catalogue, by number; reader and writer.

Long, since each row has its chain, and all are laid in one memory by the same few lines.
"""

import struct
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import QueueError
from microvm.memory import GuestMemory, GuestRegion
from microvm.testing.flipping import flipping
from microvm.testing.queue_driver import GuestHeap, QueueDriver
from microvm.virtio.chain import ChainReader, ChainWriter, DescriptorChain
from microvm.virtio.features import VERSION_1

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 8
BUFFER = 0x8000
TABLE = 0x9000
END = 0x10000

Descriptor = tuple[int, int, int, int]
"""addr, len, flags, next"""


@pytest.fixture
def driver() -> QueueDriver:
    return QueueDriver(GuestMemory.anonymous(END), heap=GuestHeap(0x1000, BUFFER), size=SIZE)


def offer(
    driver: QueueDriver,
    table: Mapping[int, Descriptor],
    indirect: Mapping[int, Descriptor] | None = None,
    *,
    head: int = 0,
    at: int = TABLE,
) -> DescriptorChain:
    """Write descriptors as they are, offer `head`, and pop it with a fresh queue."""
    for index, descriptor in table.items():
        driver.write_descriptor(index, *descriptor)
    for index, descriptor in (indirect or {}).items():
        driver.memory.write(at + 16 * index, struct.pack("<QIHH", *descriptor))
    driver.offer(head)
    chain = driver.queue(next_avail=driver.avail_idx - 1).pop()
    assert chain is not None
    return chain


def refused(
    driver: QueueDriver,
    table: Mapping[int, Descriptor],
    indirect: Mapping[int, Descriptor] | None = None,
    *,
    reason: str,
) -> None:
    with pytest.raises(QueueError, match=reason):
        offer(driver, table, indirect)


def test_a_chain_is_its_buffers_in_order(driver: QueueDriver) -> None:
    driver.memory.write(BUFFER, b"abcdef")
    chain = offer(
        driver,
        {
            3: (BUFFER, 2, NEXT, 1),
            1: (BUFFER + 2, 4, NEXT, 7),
            7: (BUFFER + 16, 8, NEXT | WRITE, 0),
            0: (BUFFER + 32, 1, WRITE, 0),
        },
        head=3,
    )
    assert chain.head == 3
    assert [bytes(view) for view in chain.readable] == [b"ab", b"cdef"]
    assert [len(view) for view in chain.writable] == [8, 1]
    assert (chain.readable_len, chain.writable_len) == (6, 9)
    chain.writable[1][:] = b"!"
    assert driver.memory.read(BUFFER + 32, 1) == b"!"


def test_19_a_head_beyond_the_table_is_refused(driver: QueueDriver) -> None:
    for head in (SIZE, 0x7FFF, 0xFFFF):
        driver.offer(head)
        with pytest.raises(QueueError, match=f"chain {head}"):
            driver.queue(next_avail=driver.avail_idx - 1).pop()


@pytest.mark.parametrize("following", [SIZE, 0x8000, 0xFFFF])
def test_19_a_next_beyond_the_table_is_refused(driver: QueueDriver, following: int) -> None:
    refused(driver, {0: (BUFFER, 1, NEXT, following)}, reason=f"{following} of {SIZE}")


def test_19_a_next_beyond_an_indirect_table_is_refused_although_the_queue_has_it(
    driver: QueueDriver,
) -> None:
    refused(
        driver,
        {0: (TABLE, 32, INDIRECT, 0)},
        {0: (BUFFER, 1, NEXT, 2), 1: (BUFFER, 1, 0, 0), 2: (BUFFER, 1, 0, 0)},
        reason="2 of 2",
    )


def test_20_a_loop_is_cut(driver: QueueDriver) -> None:
    itself: dict[int, Descriptor] = {0: (BUFFER, 1, NEXT, 0)}
    pair: dict[int, Descriptor] = {0: (BUFFER, 1, NEXT, 1), 1: (BUFFER, 1, NEXT, 0)}
    whole: dict[int, Descriptor] = {
        index: (BUFFER, 1, NEXT, (index + 1) % SIZE) for index in range(SIZE)
    }
    for loop in (itself, pair, whole):
        refused(driver, loop, reason="loops")
        refused(driver, {0: (TABLE, 16 * SIZE, INDIRECT, 0)}, loop, reason="loops")
    refused(driver, {0: (TABLE, 16, INDIRECT, 0)}, itself, reason="loops")


def test_20_a_chain_of_every_descriptor_is_legal(driver: QueueDriver) -> None:
    whole: dict[int, Descriptor] = {
        index: (BUFFER, 1, NEXT if index + 1 < SIZE else 0, index + 1) for index in range(SIZE)
    }
    assert offer(driver, whole).readable_len == SIZE
    assert offer(driver, {0: (TABLE, 16 * SIZE, INDIRECT, 0)}, whole).readable_len == SIZE


def test_21_lengths_of_2_to_the_32_in_all_are_refused() -> None:
    # A region of 2 GiB that is never touched costs address space only.
    driver = QueueDriver(GuestMemory.anonymous(0x8000_0000), heap=GuestHeap(0x1000, BUFFER), size=4)
    length = 0x7000_0000
    offer(driver, {0: (0, length, NEXT, 1), 1: (0, length, 0, 0)})
    with pytest.raises(QueueError, match="2\\^32"):
        offer(
            driver,
            {
                0: (0, length, NEXT, 1),
                1: (0, length, NEXT, 2),
                2: (0, 0xFFFF_FFFF - 2 * length + 1, WRITE, 0),
            },
        )
    assert (
        offer(
            driver,
            {
                0: (0, length, NEXT, 1),
                1: (0, length, NEXT, 2),
                2: (0, 0xFFFF_FFFF - 2 * length, WRITE, 0),
            },
        ).writable_len
        == 0x1FFF_FFFF
    )


def test_21_lengths_beyond_memory_are_refused(driver: QueueDriver) -> None:
    refused(
        driver,
        {0: (BUFFER, 0xFFFF_FFFF, NEXT, 1), 1: (BUFFER, 0xFFFF_FFFF, 0, 0)},
        reason="no 4294967295 bytes",
    )


@pytest.mark.parametrize(
    ("address", "length"),
    [((1 << 64) - 1, 2), ((1 << 64) - 4096, 0xFFFF_FFFF), (END - 1, 2), (END, 1), (1 << 63, 1)],
)
def test_22_24_a_buffer_that_is_not_ram_is_refused(
    driver: QueueDriver, address: int, length: int
) -> None:
    refused(driver, {0: (address, length, 0, 0)}, reason="no .* bytes of memory")
    refused(driver, {0: (address, length, WRITE, 0)}, reason="no .* bytes of memory")
    refused(
        driver,
        {0: (TABLE, 16, INDIRECT, 0)},
        {0: (address, length, 0, 0)},
        reason="indirect descriptor 0",
    )


def test_22_a_buffer_over_two_neighbouring_regions_is_split() -> None:
    ram = memoryview(bytearray(b"." * 0x20000))
    memory = GuestMemory(
        [
            GuestRegion(start=0, view=ram[0x10000:]),
            GuestRegion(start=0x10000, view=ram[:0x10000]),
        ]
    )
    driver = QueueDriver(memory, heap=GuestHeap(0x1000, BUFFER), size=SIZE)
    memory.write(0xFFFE, b"ab")
    memory.write(0x10000, b"cd")
    chain = offer(driver, {0: (0xFFFE, 4, 0, 0)})
    assert [bytes(view) for view in chain.readable] == [b"ab", b"cd"]
    assert chain.readable_len == 4


LOW, HIGH, PART = 0x8000, 0x40000, 0x10000
"""Two buffers in two regions, with a gap behind each; and how large a region is."""


@pytest.fixture
def two_regions() -> QueueDriver:
    memory = GuestMemory.for_ranges([(0, PART), (HIGH, PART)])
    memory.write(LOW, b"low")
    memory.write(HIGH, b"high")
    return QueueDriver(memory, heap=GuestHeap(0x1000, LOW), size=SIZE)


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("order", ["lh", "hl", "lhl", "hlh", "llhhl"])
def test_22_each_buffer_is_found_in_the_region_where_it_lies(
    two_regions: QueueDriver, order: str, indirect: bool
) -> None:
    places = {"l": (LOW, 3), "h": (HIGH, 4)}
    table: dict[int, Descriptor] = {
        index: (*places[where], NEXT if index < len(order) - 1 else 0, index + 1)
        for index, where in enumerate(order)
    }
    if indirect:
        length = 16 * len(table)
        chain = offer(two_regions, {0: (TABLE, length, INDIRECT, 0)}, table)
    else:
        chain = offer(two_regions, table)
    words = {"l": b"low", "h": b"high"}
    assert [bytes(view) for view in chain.readable] == [words[where] for where in order]


@pytest.mark.parametrize("before", [LOW, HIGH])
@pytest.mark.parametrize("address", [PART, HIGH - 1, HIGH + PART, PART - 1, HIGH + PART - 1])
def test_22_a_gap_is_no_memory_whatever_buffer_came_before(
    two_regions: QueueDriver, before: int, address: int
) -> None:
    refused(
        two_regions, {0: (before, 1, NEXT, 1), 1: (address, 2, 0, 0)}, reason="no 2 bytes of memory"
    )


@pytest.mark.parametrize("position", [0, 1, 2])
def test_23_a_zero_length_buffer_is_skipped(driver: QueueDriver, position: int) -> None:
    lengths = [3, 3, 3]
    lengths[position] = 0
    # The address of nothing may be anything.
    table: dict[int, Descriptor] = {
        index: (BUFFER if length else 1 << 63, length, NEXT if index < 2 else 0, index + 1)
        for index, length in enumerate(lengths)
    }
    chain = offer(driver, table)
    assert [len(view) for view in chain.readable] == [3, 3]


def test_23_a_chain_of_nothing_is_legal_and_empty(driver: QueueDriver) -> None:
    chain = offer(driver, {0: (0, 0, NEXT, 1), 1: (0, 0, WRITE, 0)})
    assert (chain.readable, chain.writable) == ((), ())


def test_24_buffers_in_rings_and_over_one_another_are_the_guests_own_loss(
    driver: QueueDriver,
) -> None:
    layout = driver.layout
    chain = offer(
        driver,
        {0: (layout.desc, 16, NEXT, 1), 1: (layout.used, 8, WRITE | NEXT, 2), 2: (0, 8, WRITE, 0)},
    )
    ChainWriter(chain).write(b"x" * 16)
    overlapping = offer(driver, {0: (BUFFER, 8, NEXT, 1), 1: (BUFFER + 4, 8, WRITE, 0)})
    ChainWriter(overlapping).write(ChainReader(overlapping).read(8))


def test_25_indirect_needs_to_be_negotiated() -> None:
    driver = QueueDriver(
        GuestMemory.anonymous(END), heap=GuestHeap(0x1000, BUFFER), size=SIZE, features=VERSION_1
    )
    refused(driver, {0: (TABLE, 16, INDIRECT, 0)}, {0: (BUFFER, 1, 0, 0)}, reason="not negotiated")


@pytest.mark.parametrize(
    ("descriptor", "inner", "reason"),
    [
        ((TABLE, 16, INDIRECT | NEXT, 1), (BUFFER, 1, 0, 0), "both INDIRECT and NEXT"),
        ((TABLE, 16, INDIRECT, 0), (TABLE, 16, INDIRECT, 0), "refers to another"),
        ((TABLE, 0, INDIRECT, 0), (BUFFER, 1, 0, 0), "table of 0 bytes"),
        ((TABLE, 15, INDIRECT, 0), (BUFFER, 1, 0, 0), "table of 15 bytes"),
        ((TABLE, 17, INDIRECT, 0), (BUFFER, 1, 0, 0), "table of 17 bytes"),
        ((TABLE, 16 * (SIZE + 1), INDIRECT, 0), (BUFFER, 1, 0, 0), "table of 144 bytes"),
        ((TABLE, 0xFFFF_FFF0, INDIRECT, 0), (BUFFER, 1, 0, 0), "table of 4294967280 bytes"),
        ((END - 8, 16, INDIRECT, 0), (BUFFER, 1, 0, 0), "no 16 bytes of memory"),
        ((1 << 63, 16, INDIRECT, 0), (BUFFER, 1, 0, 0), "no 16 bytes of memory"),
    ],
)
def test_25_an_illegal_indirect_table_is_refused(
    driver: QueueDriver, descriptor: Descriptor, inner: Descriptor, reason: str
) -> None:
    refused(driver, {0: descriptor, 1: (BUFFER, 1, 0, 0)}, {0: inner}, reason=reason)


def test_26_an_unaligned_indirect_table_works(driver: QueueDriver) -> None:
    at = TABLE + 3
    chain = offer(
        driver,
        {0: (at, 32, INDIRECT, 0)},
        {0: (BUFFER, 4, NEXT, 1), 1: (BUFFER, 5, WRITE, 0)},
        at=at,
    )
    assert (chain.readable_len, chain.writable_len) == (4, 5)


def test_26_the_write_flag_of_what_refers_to_a_table_is_ignored(driver: QueueDriver) -> None:
    chain = offer(
        driver,
        {0: (TABLE, 32, INDIRECT | WRITE, 0)},
        {0: (BUFFER, 4, NEXT, 1), 1: (BUFFER, 5, WRITE, 0)},
    )
    assert (chain.readable_len, chain.writable_len) == (4, 5)


def test_26_descriptors_may_be_followed_by_an_indirect_table(driver: QueueDriver) -> None:
    chain = offer(
        driver,
        {0: (BUFFER, 1, NEXT, 1), 1: (BUFFER, 2, NEXT, 2), 2: (TABLE, 32, INDIRECT, 0)},
        {0: (BUFFER, 4, NEXT, 1), 1: (BUFFER, 8, WRITE, 0)},
    )
    assert (chain.readable_len, chain.writable_len) == (7, 8)


def test_20_26_descriptors_before_a_table_count_towards_the_limit(driver: QueueDriver) -> None:
    table: dict[int, Descriptor] = {
        0: (BUFFER, 1, NEXT, 1),
        1: (TABLE, 16 * SIZE, INDIRECT, 0),
    }
    inner: dict[int, Descriptor] = {index: (BUFFER, 1, NEXT, index + 1) for index in range(SIZE)}
    refused(driver, table, inner, reason="loops, or has more than 8")
    inner[SIZE - 2] = (BUFFER, 1, 0, 0)
    assert offer(driver, table, inner).readable_len == SIZE


@pytest.mark.parametrize("length", [0, 1])
def test_27_readable_after_writable_is_refused(driver: QueueDriver, length: int) -> None:
    table: dict[int, Descriptor] = {0: (BUFFER, length, WRITE | NEXT, 1), 1: (BUFFER, 1, 0, 0)}
    refused(driver, table, reason="follows a device-writable")
    refused(driver, {0: (TABLE, 32, INDIRECT, 0)}, table, reason="follows a device-writable")
    refused(
        driver,
        {0: (BUFFER, length, WRITE | NEXT, 1), 1: (TABLE, 16, INDIRECT, 0)},
        {0: (BUFFER, 1, 0, 0)},
        reason="follows a device-writable",
    )


def test_27_unknown_flag_bits_are_ignored(driver: QueueDriver) -> None:
    chain = offer(driver, {0: (BUFFER, 1, 0xFFF8 | NEXT, 1), 1: (BUFFER, 2, 0xFFF8 | WRITE, 0)})
    assert (chain.readable_len, chain.writable_len) == (1, 2)


@pytest.mark.parametrize("rhythm", ["ge", "gee", "gge", "geege", "ggeeg"])
def test_29_a_descriptor_rewritten_meanwhile_is_one_or_the_other(
    driver: QueueDriver, rhythm: str
) -> None:
    """No mixture of an old length and a new address: both descriptors are legal, no mixture is."""
    descriptors = {
        "g": struct.pack("<QIHH", BUFFER, 16, NEXT, 1),
        "e": struct.pack("<QIHH", END - 4, 4, NEXT, 1),
    }
    driver.memory.write(BUFFER, b"g" * 16)
    driver.memory.write(END - 4, b"e" * 4)
    driver.write_descriptor(1, BUFFER + 64, 1, 0)
    for turn in range(len(rhythm)):
        driver.write_descriptor(0, BUFFER, 16, NEXT, 1)
        driver.offer(0)
        queue = driver.queue(next_avail=driver.avail_idx - 1)
        variants = [descriptors[name] for name in rhythm[turn:] + rhythm[:turn]]
        with flipping(driver.memory, driver.layout.desc, variants):
            chain = queue.pop()
        assert chain is not None
        assert bytes(chain.readable[0]) in {b"g" * 16, b"e" * 4}


def test_29_flags_and_links_rewritten_meanwhile_never_lead_astray(driver: QueueDriver) -> None:
    variants = [
        struct.pack("<QIHH", BUFFER, 16, NEXT, 1),
        struct.pack("<QIHH", 1 << 63, 0xFFFF_FFFF, WRITE | NEXT, 0xFFFF),
        struct.pack("<QIHH", TABLE, 32, INDIRECT, 0),
        struct.pack("<QIHH", END - 8, 8, WRITE, 0),
        struct.pack("<QIHH", TABLE, 0xFFFF_FFFF, INDIRECT | NEXT, 0),
    ]
    for first in range(len(variants)):
        order = variants[first:] + variants[:first]
        for index in range(SIZE):
            driver.write_descriptor(index, BUFFER, 1, NEXT, (index + 1) % SIZE)
        driver.offer(0)
        queue = driver.queue(next_avail=driver.avail_idx - 1)
        with flipping(driver.memory, driver.layout.desc, order):
            try:
                chain = queue.pop()
            except QueueError:
                continue
        assert chain is not None
        assert chain.readable_len == sum(map(len, chain.readable))
        assert chain.writable_len == sum(map(len, chain.writable))


# --- reader and writer -----------------------------------------------------------------------

CUTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces of the lengths `cuts`, the last one taking the rest."""
    pieces = []
    for cut in cuts[:-1]:
        pieces.append(data[:cut])
        data = data[cut:]
    return [piece for piece in (*pieces, data) if piece]


@given(cuts=CUTS, reads=st.lists(st.integers(0, 9), max_size=8))
def test_a_reader_sees_the_same_bytes_wherever_they_are_cut(
    cuts: list[int], reads: list[int]
) -> None:
    data = bytes(range(1, 24))
    driver = QueueDriver(GuestMemory.anonymous(END))
    driver.add(split(data, cuts))
    chain = driver.queue().pop()
    assert chain is not None
    reader = ChainReader(chain)
    done = 0
    for number, length in enumerate(reads):
        if length > len(data) - done:
            before = reader.remaining
            with pytest.raises(QueueError, match="ends"):
                reader.read(length)
            assert reader.remaining == before
            continue
        expected = data[done : done + length]
        if number % 3 == 0:
            assert reader.read(length) == expected
        elif number % 3 == 1:
            assert b"".join(reader.views(length)) == expected
        else:
            target = bytearray(length)
            reader.read_into(target)
            assert target == expected
        done += length
        assert reader.remaining == len(data) - done


@given(lengths=CUTS, writes=st.lists(st.integers(0, 9), max_size=8))
def test_a_writer_fills_buffers_in_order_and_counts(lengths: list[int], writes: list[int]) -> None:
    driver = QueueDriver(GuestMemory.anonymous(END))
    head = driver.add(writable=lengths)
    queue = driver.queue()
    chain = queue.pop()
    assert chain is not None
    writer = ChainWriter(chain)
    room, expected = sum(lengths), b""
    for number, length in enumerate(writes):
        data = bytes([65 + number]) * length
        fits = data[: room - len(expected)]
        if number % 2:
            assert writer.write(data) == len(fits)
        else:
            views = writer.views(length)
            assert sum(map(len, views)) == len(fits)
            for view in views:
                view[:] = data[: len(view)]
            writer.advance(len(fits))
        expected += fits
        assert (writer.written, writer.remaining) == (len(expected), room - len(expected))
    with pytest.raises(ValueError, match="fit"):
        writer.advance(writer.remaining + 1)
    queue.add_used(head, writer.written)
    assert driver.used()[0].data == expected
