"""The rings: rows 10, 17, 18, 28, 33 and 34 of the hazard catalogue, by number."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import QueueError
from microvm.memory import GuestMemory
from microvm.testing.queue_driver import QueueDriver, UsedBuffer
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES, VERSION_1
from microvm.virtio.queue import QueueLayout, VirtQueue


@pytest.fixture
def driver() -> QueueDriver:
    return QueueDriver(size=8)


def test_a_request_goes_round(driver: QueueDriver) -> None:
    queue = driver.queue()
    assert queue.pop() is None
    head = driver.add([b"question"], [16])
    chain = queue.pop()
    assert chain is not None
    assert chain.head == head
    assert bytes(chain.readable[0]) == b"question"
    chain.writable[0][:6] = b"answer"
    assert queue.in_flight == 1
    queue.add_used(head, 6)
    assert queue.in_flight == 0
    assert driver.used() == [UsedBuffer(head=head, written=6, data=b"answer")]
    assert queue.pop() is None


@pytest.mark.parametrize("start", [0x7FFE, 0xFFFE])
def test_18_chains_used_together_are_so_also_where_the_index_wraps(start: int) -> None:
    """Row 18."""
    driver = QueueDriver()
    driver.begin_at(start)
    queue = driver.queue(next_avail=start)
    heads = [driver.add(writable=[4]) for _ in range(4)]
    popped = [chain.head for chain in queue.pop_all()]
    queue.add_used_together([(head, 4) for head in popped])
    assert [used.head for used in driver.used()] == heads


def test_chains_used_together_are_seen_together(driver: QueueDriver) -> None:
    queue = driver.queue()
    heads = [driver.add(writable=[4]) for _ in range(3)]
    chains = list(queue.pop_all())
    for chain in chains:
        chain.writable[0][:] = b"%4d" % chain.head
    with pytest.raises(ValueError, match="not in flight"):
        queue.add_used_together([(heads[0], 4), (heads[0], 4)])
    assert driver.used() == []
    queue = driver.queue()
    for _ in queue.pop_all():
        pass
    queue.add_used_together([(head, 4) for head in heads])
    assert queue.in_flight == 0
    assert queue.needs_notification()
    assert [buffer.data for buffer in driver.used()] == [b"%4d" % head for head in heads]


@pytest.mark.parametrize("size", [-8, 0, 3, 257, 0x10000, 1 << 32])
def test_10_a_size_that_is_no_power_of_two_up_to_32768_is_refused(size: int) -> None:
    with pytest.raises(QueueError, match="power of two"):
        QueueLayout(size=size, desc=0x1000, avail=0x2000, used=0x3000)


@pytest.mark.parametrize(
    ("desc", "avail", "used", "reason"),
    [
        (0x1008, 0x2000, 0x3000, "descriptor table .* aligned to 16"),
        (0x1000, 0x2001, 0x3000, "available ring .* aligned to 2"),
        (0x1000, 0x2000, 0x3002, "used ring .* aligned to 4"),
        (-16, 0x2000, 0x3000, "aligned"),
        (0x1000, 0x107E, 0x3000, "overlap"),
        (0x1000, 0x2000, 0x2014, "overlap"),
        (0x1000, 0x2000, 0x0FC0, "overlap"),
        (0x1000, 0x1000, 0x1000, "overlap"),
    ],
)
def test_10_rings_misaligned_or_over_one_another_are_refused(
    desc: int, avail: int, used: int, reason: str
) -> None:
    with pytest.raises(QueueError, match=reason):
        QueueLayout(size=8, desc=desc, avail=avail, used=used)


def test_10_rings_may_touch() -> None:
    layout = QueueLayout(size=8, desc=0x1000, avail=0x1080, used=0x1098)
    assert (layout.desc_bytes, layout.avail_bytes, layout.used_bytes) == (128, 22, 70)


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
@pytest.mark.parametrize("address", [0x1_0000, 0xFFF0, 1 << 63, (1 << 64) - 16])
def test_10_rings_outside_ram_are_refused(part: str, address: int) -> None:
    places = {"desc": 0x1000, "avail": 0x2000, "used": 0x3000, part: address}
    with pytest.raises(QueueError, match="must be in RAM"):
        VirtQueue(
            GuestMemory.anonymous(0x1_0000), QueueLayout(size=8, **places), features=VERSION_1
        )


@pytest.mark.parametrize("ahead", [9, 100, 0x8000, 0xFFFF])
def test_17_an_index_further_ahead_than_the_queue_is_long_is_refused(
    driver: QueueDriver, ahead: int
) -> None:
    queue = driver.queue()
    driver.avail_idx = ahead
    for _ in range(3):
        with pytest.raises(QueueError, match=f"runs {ahead} ahead"):
            queue.pop()
    with pytest.raises(QueueError):
        list(queue.pop_all())


def test_17_an_index_moved_backwards_is_refused(driver: QueueDriver) -> None:
    queue = driver.queue()
    for _ in range(3):
        driver.add([b"x"])
    assert len(list(queue.pop_all())) == 3
    driver.avail_idx -= 1
    with pytest.raises(QueueError, match="runs 65535 ahead"):
        queue.pop()


def test_17_pop_all_ends_while_the_driver_keeps_offering(driver: QueueDriver) -> None:
    queue = driver.queue()
    driver.add([b"x"])
    done = 0
    for chain in queue.pop_all():
        queue.add_used(chain.head, 0)
        driver.used()
        driver.add([b"x"])
        done += 1
    assert done == queue.size
    assert queue.enable_notification()


@pytest.mark.parametrize("features", [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX])
def test_18_indexes_wrap(features: int) -> None:
    """140 000 requests in bursts of every size: each index passes 65535 twice."""
    driver = QueueDriver(size=8, features=features)
    queue = driver.queue()
    sizes = random.Random(18)
    sent = answered = 0
    while answered < 140_000:
        burst = sizes.randint(1, 8)
        for _ in range(burst):
            driver.add(writable=[8])
            sent += 1
        for chain in queue.pop_all():
            answered += 1
            chain.writable[0][:] = answered.to_bytes(8, "little")
            queue.add_used(chain.head, 8)
        assert queue.needs_notification() or features & RING_EVENT_IDX
        used = driver.used()
        assert [int.from_bytes(one.data, "little") for one in used] == list(
            range(sent - burst + 1, sent + 1)
        )
    assert sent == answered
    assert queue.next_avail == sent & 0xFFFF


def test_18_a_queue_goes_on_at_any_index() -> None:
    driver = QueueDriver(size=8)
    driver.avail_idx = 0xFFFE
    queue = driver.queue(next_avail=0xFFFE)
    heads = [driver.add([b"x"]) for _ in range(4)]
    assert [chain.head for chain in queue.pop_all()] == heads
    assert queue.next_avail == 2


def test_28_a_head_in_flight_is_refused_when_offered_again(driver: QueueDriver) -> None:
    queue = driver.queue()
    head = driver.add([b"x"])
    assert queue.pop() is not None
    driver.offer(head)
    with pytest.raises(QueueError, match="still has it"):
        queue.pop()
    assert queue.in_flight == 1


def test_28_no_more_than_the_queues_size_is_ever_in_flight(driver: QueueDriver) -> None:
    queue = driver.queue()
    for index in range(8):
        driver.write_descriptor(index, 0x8000, 1, 0)
        driver.offer(index)
    assert len(list(queue.pop_all())) == 8
    for index in range(8):
        driver.offer(index)
    with pytest.raises(QueueError):
        queue.pop()
    assert queue.in_flight == 8


def test_34_a_device_cannot_use_what_it_does_not_have(driver: QueueDriver) -> None:
    queue = driver.queue()
    head = driver.add([b"x"], [4])
    for wrong in (head, 7, 8, -1, 1 << 16):
        with pytest.raises(ValueError, match="not in flight"):
            queue.add_used(wrong, 0)
    assert queue.pop() is not None
    queue.add_used(head, 4)
    with pytest.raises(ValueError, match="not in flight"):
        queue.add_used(head, 4)
    assert len(driver.used()) == 1


@pytest.mark.parametrize("written", [-1, 5, 1 << 32])
def test_34_a_device_cannot_have_written_more_than_fits(driver: QueueDriver, written: int) -> None:
    queue = driver.queue()
    head = driver.add([b"12345678"], [4])
    assert queue.pop() is not None
    with pytest.raises(ValueError, match="holds 4 bytes"):
        queue.add_used(head, written)
    queue.add_used(head, 0)
    assert driver.used() == [UsedBuffer(head=head, written=0, data=b"")]


def test_33_a_released_queue_touches_no_memory(driver: QueueDriver) -> None:
    queue = driver.queue()
    head = driver.add([b"x"])
    driver.add([b"y"])
    assert queue.pop() is not None
    queue.release()
    for use in (
        queue.pop,
        queue.enable_notification,
        queue.rewind,
        lambda: queue.add_used(head, 0),
    ):
        with pytest.raises(ValueError, match="released"):
            use()
    assert driver.used() == []


def test_an_error_leaves_the_queue_where_it_was(driver: QueueDriver) -> None:
    queue = driver.queue()
    driver.add([b"good"])
    driver.write_descriptor(6, 1 << 60, 1, 0)
    driver.offer(6)
    assert queue.pop() is not None
    for _ in range(2):
        with pytest.raises(QueueError, match="Chain 6"):
            queue.pop()
    assert (queue.next_avail, queue.in_flight) == (1, 1)


def test_what_was_popped_last_and_not_used_is_offered_again_after_rewind(
    driver: QueueDriver,
) -> None:
    queue = driver.queue()
    heads = [driver.add([b"x"]) for _ in range(5)]
    for _ in range(4):
        assert queue.pop() is not None
    queue.add_used(heads[0], 0)
    queue.add_used(heads[2], 0)
    queue.rewind()
    assert queue.next_avail == 3
    assert queue.in_flight == 1  # heads[1], popped before one that was used
    resumed = driver.queue(next_avail=queue.next_avail)
    assert [chain.head for chain in resumed.pop_all()] == heads[3:]


def test_rewind_follows_no_head_that_the_driver_has_changed(driver: QueueDriver) -> None:
    queue = driver.queue()
    driver.add([b"x"])
    assert queue.pop() is not None
    driver.memory.store_u16(driver.layout.avail + 4, 0xFFFF)
    queue.rewind()
    assert queue.next_avail == 1


@given(
    descriptors=st.lists(
        st.tuples(
            st.one_of(
                st.integers(0x8000, 0x8100),
                st.integers(0x2_0000 - 64, 0x2_0000 + 64),
                st.integers(0, (1 << 64) - 1),
            ),
            st.one_of(st.integers(0, 64), st.integers(0, (1 << 32) - 1)),
            st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)),
            st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)),
        ),
        min_size=1,
        max_size=8,
    ),
    heads=st.lists(st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF)), min_size=1, max_size=10),
    jump=st.one_of(st.just(0), st.integers(0, 0xFFFF)),
)
def test_17_to_28_whatever_the_driver_writes_ends_in_buffers_in_ram_or_a_queue_error(
    descriptors: list[tuple[int, int, int, int]], heads: list[int], jump: int
) -> None:
    driver = QueueDriver(GuestMemory.for_ranges([(0, 0x1_0000), (0x2_0000, 0x1000)]), size=8)
    for index, descriptor in enumerate(descriptors):
        driver.write_descriptor(index, *descriptor)
    for head in heads:
        driver.offer(head)
    driver.avail_idx += jump
    queue = driver.queue()
    before = driver.memory.read(0, 0x1_0000)
    popped = 0
    try:
        for chain in queue.pop_all():
            popped += 1
            assert chain.readable_len == sum(map(len, chain.readable))
            assert chain.writable_len == sum(map(len, chain.writable))
            assert chain.readable_len + chain.writable_len < 1 << 32
            assert all((*chain.readable, *chain.writable, True))
            for view in (*chain.readable, *chain.writable):
                driver.memory.address_of(view)
    except QueueError as error:
        assert error.message.endswith(".")  # noqa: PT017 - what was popped before it counts too
    assert queue.in_flight == popped <= 8
    used = slice(driver.layout.used, driver.layout.used + driver.layout.used_bytes)
    after = driver.memory.read(0, 0x1_0000)
    assert after[: used.start] == before[: used.start]
    assert after[used.stop :] == before[used.stop :]
