"""The balloon as a guest's driver sees it, on real memory."""

import struct

import pytest
import trio
import trio.testing

from microvm.errors import ConfigError, GuestError, GuestGone
from microvm.testing.queue_driver import activation
from microvm.virtio.features import RING_FEATURES
from microvm_devices.balloon.statistics import STAT

from .balloon_driver import (
    MEMORY_MIB,
    MIB,
    OOM,
    PAGE,
    POISON,
    REPORTING,
    RINGS_MIB,
    STATS,
    Driver,
    device,
)

# --- giving memory back ------------------------------------------------------------------------


async def test_what_goes_into_the_balloon_goes_back_to_the_host() -> None:
    balloon = device()
    driver = Driver(balloon)
    driver.fill()
    before = driver.rss_mib()
    assert before >= MEMORY_MIB - RINGS_MIB
    async with driver.driving():
        first = 8 * MIB // PAGE
        await driver.give(range(first, first + 48 * MIB // PAGE))
    assert before - driver.rss_mib() == 48
    assert driver.memory.read(8 * MIB, PAGE) == bytes(PAGE)
    assert driver.memory.read(8 * MIB - 1, 1) == b"\xaa"
    assert driver.memory.read(56 * MIB, 1) == b"\xaa"
    counters = balloon.counters()
    assert (counters["inflated_bytes"], counters["reclaimed_bytes"]) == (48 * MIB, 48 * MIB)


async def test_a_page_that_is_taken_back_is_there_again() -> None:
    driver = Driver(device())
    driver.fill()
    async with driver.driving():
        await driver.give([2048])
        await driver.deflate.ask([struct.pack("<I", 2048)])
        driver.memory.write(2048 * PAGE, b"mine again")
        await driver.give([2049])
        assert driver.memory.read(2048 * PAGE, 10) == b"mine again"


async def test_free_pages_that_are_reported_go_back_by_themselves() -> None:
    balloon = device()
    driver = Driver(balloon)
    driver.fill()
    before = driver.rss_mib()
    reporting = driver.queues[3]
    async with driver.driving():
        for step in range(8):
            address = 8 * MIB + step * 4 * MIB
            reporting.write_descriptor(0, address, 2 * MIB, 2 | 1, 1)
            reporting.write_descriptor(1, address + 2 * MIB, 2 * MIB, 2)
            reporting.offer(0)
            reporting.kick()
            await trio.testing.wait_all_tasks_blocked()
    assert before - driver.rss_mib() == 32
    assert balloon.counters()["reported_bytes"] == 32 * MIB
    assert driver.memory.read(8 * MIB, PAGE) == bytes(PAGE)


async def test_pages_that_the_guest_has_filled_with_poison_are_left_alone() -> None:
    balloon = device()
    driver = Driver(balloon)
    driver.fill()
    reporting = driver.queues[3]
    async with driver.driving():
        balloon.write_config(12, b"\xaa\xaa\xaa\xaa")
        reporting.write_descriptor(0, 8 * MIB, 2 * MIB, 2)
        reporting.offer(0)
        reporting.kick()
        await trio.testing.wait_all_tasks_blocked()
    assert driver.memory.read(8 * MIB, PAGE) == b"\xaa" * PAGE


async def test_without_statistics_the_reporting_queue_has_their_number() -> None:
    balloon = device()
    driver = Driver(balloon, features=REPORTING)
    driver.fill()
    reporting = driver.queues[2]
    async with driver.driving():
        reporting.write_descriptor(0, 8 * MIB, 2 * MIB, 2)
        reporting.offer(0)
        reporting.kick()
        await trio.testing.wait_all_tasks_blocked()
    assert balloon.counters()["reclaimed_bytes"] == 2 * MIB


# --- the target --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "features", "queues"),
    [
        ({}, STATS | OOM | REPORTING | POISON, 4),
        ({"free_page_reporting": False}, STATS | OOM, 3),
        ({"deflate_on_oom": False, "free_page_reporting": False}, STATS, 3),
    ],
)
def test_what_each_balloon_offers(options, features: int, queues: int) -> None:
    balloon = device(**options)
    assert (balloon.features, len(balloon.queue_max_sizes)) == (features, queues)


async def test_the_target_is_told_and_the_guests_answer_read() -> None:
    balloon = device(target_mib=5)
    driver = Driver(balloon)
    assert struct.unpack("<IIII", balloon.read_config(0, 16)) == (5 * 256, 0, 0, 0)
    async with driver.driving():
        await trio.testing.wait_all_tasks_blocked()
        balloon.set_target_mib(20)
        assert driver.config_changes == 1
        assert struct.unpack("<I", balloon.read_config(0, 4)) == (20 * 256,)
        balloon.write_config(4, struct.pack("<I", 7 * 256))
        assert (balloon.target_mib, balloon.actual_mib) == (20, 7)
    balloon.reset()
    assert (balloon.target_mib, balloon.actual_mib) == (20, 0)


async def test_a_target_that_is_set_between_two_runs_is_told_in_the_later_one() -> None:
    balloon = device()
    driver = Driver(balloon)
    balloon.set_target_mib(3)
    async with driver.driving():
        await trio.testing.wait_all_tasks_blocked()
        assert driver.config_changes == 1


@pytest.mark.parametrize("mib", [-1, 1 << 30, 1.5, True])
def test_a_target_that_can_not_be_is_refused(mib: int) -> None:
    with pytest.raises(ConfigError, match="can't be"):
        device().set_target_mib(mib)


def test_the_driver_writes_its_own_fields_and_no_others() -> None:
    balloon = device(target_mib=1)
    balloon.write_config(0, b"\xff" * 64)
    assert balloon.read_config(0, 20) == struct.pack("<IIIII", 256, 0xFFFF_FFFF, 0, 0xFFFF_FFFF, 0)
    balloon.write_config(-3, b"\0" * 8)
    balloon.write_config(1 << 40, b"\0" * 8)
    assert balloon.actual_mib == 0xFFFF_FF00 // 256


# --- statistics --------------------------------------------------------------------------------


async def test_figures_are_asked_for_and_come_fresh() -> None:
    balloon = device()
    driver = Driver(balloon)
    stats = driver.queues[2]
    async with driver.driving(), trio.open_nursery() as nursery:
        stats.add([STAT.pack(4, 100)])
        stats.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert balloon.statistics == {"free_bytes": 100}
        assert stats.used() == []

        async def guest() -> None:
            await stats.wait_used()
            stats.add([STAT.pack(4, 50) + STAT.pack(5, 200)])
            stats.kick()

        nursery.start_soon(guest)
        assert await balloon.ask_statistics() == {"free_bytes": 50, "total_bytes": 200}


async def test_two_who_ask_are_both_answered() -> None:
    balloon = device()
    driver = Driver(balloon)
    stats = driver.queues[2]
    answers = []

    async def ask() -> None:
        answers.append(await balloon.ask_statistics())

    async with driver.driving(), trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        stats.add([STAT.pack(4, 1)])
        stats.kick()
    assert answers == [{"free_bytes": 1}] * 2


async def test_figures_that_are_asked_for_in_a_pause_are_not_those_from_before_it() -> None:
    balloon = device()
    driver = Driver(balloon)
    stats = driver.queues[2]
    active = activation(*driver.queues, features=RING_FEATURES | driver.features)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(balloon.run, active)
        stats.add([STAT.pack(4, 1)])
        stats.kick()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    for queue in active.queues:
        queue.queue.rewind()
    answers = []

    async def ask() -> None:
        answers.append(await balloon.ask_statistics())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(balloon.run, active)
        await stats.wait_used()
        assert answers == []
        stats.add([STAT.pack(4, 2)])
        stats.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert answers == [{"free_bytes": 2}]
        nursery.cancel_scope.cancel()


def test_figures_are_asked_for_by_themselves_at_an_interval() -> None:
    balloon = device(stats_interval_s=5)

    async def main() -> None:
        driver = Driver(balloon)
        stats = driver.queues[2]
        async with driver.driving():
            began = trio.current_time()
            for turn in range(4):
                stats.add([STAT.pack(4, turn)])
                stats.kick()
                await stats.wait_used()
            assert trio.current_time() - began == pytest.approx(20, abs=0.1)
            assert balloon.statistics == {"free_bytes": 3}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_driver_without_figures_and_a_machine_that_is_gone_are_said_to_be_so() -> None:
    balloon = device()
    async with Driver(balloon, features=0).driving():
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(GuestError, match="no statistics"):
            await balloon.ask_statistics()
    with pytest.raises(GuestGone):
        await balloon.ask_statistics()


async def test_the_first_figures_after_a_reset_are_the_next_drivers() -> None:
    """The buffer that the last driver had left with us is none of its."""
    balloon = device()
    for free in (1, 2):
        driver = Driver(balloon)
        stats = driver.queues[2]
        async with driver.driving():
            stats.add([STAT.pack(4, free)])
            stats.kick()
            await trio.testing.wait_all_tasks_blocked()
            assert balloon.statistics == {"free_bytes": free}


async def test_who_waits_for_figures_hears_of_a_driver_without() -> None:
    balloon = device()
    with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(balloon.ask_statistics)
            await trio.testing.wait_all_tasks_blocked()
            async with Driver(balloon, features=0).driving():
                await trio.sleep_forever()
    assert caught.group_contains(GuestError, match="no statistics")


async def test_who_waits_for_figures_hears_of_the_end() -> None:
    balloon = device()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(GuestGone):
                await balloon.ask_statistics()

        async with Driver(balloon).driving():
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
