"""Who rings when: rows 31 and 32 of the hazard catalogue, by number.

The expectation is computed the standard's way (virtio 1.2, 2.7.7, 2.7.10), with sets of indexes
instead of arithmetic modulo 2^16.
"""

from collections.abc import Callable

import pytest

from microvm.testing.flipping import acting_between_steps
from microvm.testing.queue_driver import QueueDriver
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES
from microvm.virtio.queue import VirtQueue

FLAGS = RING_FEATURES & ~RING_EVENT_IDX
BOTH_MODES = pytest.mark.parametrize("features", [RING_FEATURES, FLAGS], ids=["event_idx", "flags"])


def use(driver: QueueDriver, queue: VirtQueue, count: int) -> None:
    for _ in range(count):
        driver.add([b"x"])
    for chain in queue.pop_all():
        queue.add_used(chain.head, 0)
    driver.used()


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_32_an_interrupt_comes_iff_the_batch_passes_used_event(count: int) -> None:
    """Every distance from the batch, near and far, with the indexes before, at and after 65536."""
    driver = QueueDriver(size=8)
    driver.avail_idx = start = 0x10000 - 60
    driver.memory.store_u16(driver.layout.used + 2, start)
    queue = driver.queue(next_avail=start)
    queue.needs_notification()
    driver._used_idx = start
    old = start
    for distance in (*range(-12, 13), 0x4000, 0x7FFF, 0x8000, 0x8001, 0xC000):
        driver.used_event = (old + distance) & 0xFFFF
        use(driver, queue, count)
        passed = {(old + step) & 0xFFFF for step in range(count)}
        assert queue.needs_notification() == (driver.used_event in passed)
        old = (old + count) & 0xFFFF


def test_32_every_used_event_there_is() -> None:
    driver = QueueDriver(size=8)
    queue = driver.queue()
    old = 0
    for used_event in range(0x10000):
        driver.used_event = used_event
        use(driver, queue, 1)
        assert queue.needs_notification() == (used_event == old)
        old = (old + 1) & 0xFFFF
        if used_event % 3 == 0:  # let the two drift apart, so that most do not meet
            use(driver, queue, 1)
            queue.needs_notification()
            old = (old + 1) & 0xFFFF


def test_32_batches_add_up_until_they_are_asked_about() -> None:
    driver = QueueDriver(size=8)
    queue = driver.queue()
    driver.used_event = 2
    for _ in range(4):
        use(driver, queue, 1)
    assert queue.needs_notification()
    assert not queue.needs_notification()


def test_32_a_batch_of_65536_passes_every_index() -> None:
    driver = QueueDriver(size=8)
    queue = driver.queue()
    driver.used_event = 5
    use(driver, queue, 6)
    assert queue.needs_notification()
    for _ in range(0x10000 // 8):
        use(driver, queue, 8)
    driver.used_event = 3
    assert queue.needs_notification()


def test_32_no_interrupt_without_a_used_buffer() -> None:
    for features in (RING_FEATURES, FLAGS):
        assert not QueueDriver(features=features).queue().needs_notification()


def test_32_the_flag_silences_without_event_idx_and_says_nothing_with_it() -> None:
    for features, expected in ((FLAGS, False), (RING_FEATURES, True)):
        driver = QueueDriver(features=features)
        queue = driver.queue()
        driver.avail_flags = 1
        use(driver, queue, 1)
        assert queue.needs_notification() is expected
        driver.avail_flags = 0xFFFE  # reserved bits
        driver.used_event = 1
        use(driver, queue, 1)
        assert queue.needs_notification()


def test_a_queue_that_goes_on_gives_the_interrupt_that_it_may_owe() -> None:
    driver = QueueDriver()
    first = driver.queue()
    driver.used_event = 0
    use(driver, first, 1)  # stopped before it asked
    resumed = driver.queue(next_avail=first.next_avail)
    assert resumed.needs_notification()
    assert not resumed.needs_notification()


@BOTH_MODES
def test_32_the_driver_is_silent_while_it_is_asked_to_be(features: int) -> None:
    driver = QueueDriver(features=features)
    queue = driver.queue()
    driver.add([b"x"])
    assert driver.kick()
    queue.disable_notification()
    assert queue.pop() is not None
    driver.add([b"x"])
    assert not driver.kick()
    assert queue.enable_notification()
    assert queue.pop() is not None
    assert not queue.enable_notification()
    driver.add([b"x"])
    assert driver.kick()


# --- lost wake-ups (31) ------------------------------------------------------------------------
#
# The driver acts at one point of the device's code, for every point there is: after each
# bytecode. What must hold at the end is that somebody knows.


def until_empty(queue: VirtQueue) -> int:
    """The loop of a device that does not mind interrupts."""
    done = 0
    while (chain := queue.pop()) is not None:
        queue.add_used(chain.head, 0)
        done += 1
    return done


def silenced(queue: VirtQueue) -> int:
    """The loop of the queue's documentation."""
    done = 0
    busy = True
    while busy:
        queue.disable_notification()
        for chain in queue.pop_all():
            queue.add_used(chain.head, 0)
            done += 1
        busy = queue.enable_notification()
    return done


@BOTH_MODES
@pytest.mark.parametrize("loop", [until_empty, silenced])
def test_31_a_buffer_offered_at_any_moment_is_seen_or_rung_for(
    features: int, loop: Callable[[VirtQueue], int]
) -> None:
    moment = 0
    while True:
        driver = QueueDriver(features=features)
        queue = driver.queue()
        assert loop(queue) == 0
        driver.add([b"first"])
        assert driver.kick()
        rings: list[bool] = []

        def offer(step: int, driver: QueueDriver = driver, rings: list[bool] = rings) -> None:
            if step == moment:  # noqa: B023 - called within this round
                driver.add([b"second"])
                rings.append(driver.kick())

        with acting_between_steps(offer):
            done = loop(queue)
        if not rings:
            break
        assert done == 2 or rings == [True], f"Lost at step {moment}."
        moment += 1
    assert moment > 100


@BOTH_MODES
def test_31_a_driver_going_to_sleep_at_any_moment_sees_the_buffer_or_is_woken(
    features: int,
) -> None:
    moment = 0
    while True:
        driver = QueueDriver(features=features)
        queue = driver.queue()
        driver.add([b"x"])
        # As a driver that polls: no interrupt is wanted.
        driver.avail_flags = 1
        driver.used_event = 0x8000
        chain = queue.pop()
        assert chain is not None
        saw: list[bool] = []

        def sleep(step: int, driver: QueueDriver = driver, saw: list[bool] = saw) -> None:
            if step == moment:  # noqa: B023 - called within this round
                driver.avail_flags = 0
                saw.append(driver.want_interrupt())

        with acting_between_steps(sleep):
            queue.add_used(chain.head, 0)
            woken = queue.needs_notification()
        if not saw:
            break
        assert woken or saw == [True], f"Lost at step {moment}."
        moment += 1
    assert moment > 50
