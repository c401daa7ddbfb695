"""virtio-rng as a guest's driver sees it (virtio 1.2, 5.4); row 65 of the hazard catalogue."""

import os
import subprocess
import sys
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.config import RateLimit
from microvm.errors import ConfigError, QueueError
from microvm.testing.queue_driver import QueueDriver, activation
from microvm.virtio.chain import DESC_F_NEXT, DESC_F_WRITE
from microvm_devices.rng import plugin
from microvm_devices.rng.config import DEFAULT_LIMIT, RngConfig
from microvm_devices.rng.device import MAX_ANSWER_BYTES, QUEUE_SIZE, RngDevice


def device(**options: object) -> RngDevice:
    made = plugin.create(options)
    assert isinstance(made, RngDevice)
    return made


@asynccontextmanager
async def running(rng: RngDevice, driver: QueueDriver) -> AsyncIterator[None]:
    async with rng.lifespan(), trio.open_nursery() as nursery:
        rng.reset()
        nursery.start_soon(rng.run, activation(driver))
        yield
        nursery.cancel_scope.cancel()


# --- what it gives -----------------------------------------------------------------------------


async def test_every_request_is_filled_with_bytes_that_differ() -> None:
    driver = QueueDriver()
    async with running(device(), driver):
        first = await driver.ask([], [32])
        second = await driver.ask([], [1, 15, 16])
    assert (first.written, second.written) == (32, 32)
    assert len({first.data, second.data, bytes(32)}) == 3


async def test_requests_are_answered_in_order_however_many_there_are() -> None:
    driver = QueueDriver(size=QUEUE_SIZE)
    async with running(device(rate_limit=None), driver):
        for _ in range(20):
            heads = [driver.add([], [8]) for _ in range(QUEUE_SIZE)]
            driver.kick()
            assert [used.head for used in await driver.wait_used(QUEUE_SIZE)] == heads


async def test_its_counters_are_those_of_the_guest() -> None:
    driver = QueueDriver()
    rng = device()
    async with running(rng, driver):
        await driver.ask([], [100])
        await driver.ask([], [1])
    assert rng.counters() == {"requests": 2, "written_bytes": 101, "throttled": 0, "errors": 0}


async def test_a_driver_that_has_set_up_no_queue_is_waited_for() -> None:
    rng = device()
    driver = QueueDriver()
    with trio.move_on_after(0.01) as scope:
        await rng.run(attrs_without_queues(driver))
    assert scope.cancelled_caught


def attrs_without_queues(driver: QueueDriver):  # type: ignore[no-untyped-def]
    import attrs

    return attrs.evolve(activation(driver), queues=())


# --- row 65 ------------------------------------------------------------------------------------


async def test_row_65_a_huge_request_gets_64_kib() -> None:
    """Row 65: 1 GiB in one chain, made of the same 1 MiB again and again."""
    driver = QueueDriver(size=1024)
    block, _ = driver.heap.take(1 << 20)
    for index in range(1024):
        flags = DESC_F_WRITE | (DESC_F_NEXT if index < 1023 else 0)
        driver.write_descriptor(index, block, 1 << 20, flags, index + 1 if index < 1023 else 0)
    rng = device()
    async with running(rng, driver):
        driver.offer(0)
        driver.kick()
        await trio.testing.wait_all_tasks_blocked()
    assert rng.counters()["written_bytes"] == MAX_ANSWER_BYTES
    assert driver.memory.read(block + MAX_ANSWER_BYTES, 16) == bytes(16)


async def test_row_65_one_byte_is_one_byte() -> None:
    """Row 65."""
    driver = QueueDriver()
    async with running(device(), driver):
        used = await driver.ask([], [1])
        assert (used.written, len(used.data)) == (1, 1)


@pytest.mark.parametrize(
    ("readable", "writable"), [([b"x"], []), ([b"x"], [8]), ([], [0]), ([b""], [])]
)
async def test_row_65_what_is_no_request_is_the_drivers_fault(
    readable: list[bytes], writable: list[int]
) -> None:
    """Row 65: readable buffers, and none to fill."""
    driver = QueueDriver()
    rng = device()
    driver.add(readable, writable)
    with pytest.raises(QueueError, match="entropy request"):
        await rng.run(activation(driver))
    assert rng.counters()["errors"] == 1


def test_row_65_a_storm_of_requests_is_kept_to_the_rate(autojump_clock) -> None:
    """Row 65: by the clock of the test."""
    driver = QueueDriver(size=QUEUE_SIZE)
    limit = RateLimit(bytes_per_s=1000, burst_bytes=500, ops_per_s=1000)
    rng = device(rate_limit=limit)

    async def storm() -> None:
        async with running(rng, driver):
            began = trio.current_time()
            given_bytes = 0
            while given_bytes < 5000:
                while driver.free_descriptors:
                    driver.add([], [100])
                driver.kick()
                given_bytes += sum(used.written for used in await driver.wait_used())
                assert given_bytes <= 500 + 1000 * (trio.current_time() - began) + 1
            assert trio.current_time() - began == pytest.approx(4.5, abs=0.2)

    trio.run(storm, clock=autojump_clock)
    assert rng.counters()["throttled"] > 10


async def test_row_65_by_default_there_is_a_limit_and_a_guest_that_boots_never_meets_it() -> None:
    """Row 65."""
    assert RngConfig().rate_limit == DEFAULT_LIMIT
    assert DEFAULT_LIMIT.bytes_per_s is not None
    driver = QueueDriver()
    rng = device()
    async with running(rng, driver):
        for _ in range(64):
            await driver.ask([], [4096])
    assert rng.counters()["throttled"] == 0


@given(lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=8), indirect=st.booleans())
@settings(max_examples=50)
def test_row_65_exactly_what_fits_is_written_however_the_buffers_are_cut(
    lengths: list[int], indirect: bool
) -> None:
    """Row 65, with row 34: the used length is the bytes written, and none beyond."""
    if not sum(lengths):
        lengths.append(1)

    async def main() -> None:
        driver = QueueDriver()
        async with running(device(), driver):
            used = await driver.ask([], lengths, indirect=indirect)
            assert used.written == sum(lengths)

    trio.run(main)


# --- pauses ------------------------------------------------------------------------------------


async def test_a_request_that_waits_for_its_turn_is_answered_after_a_pause() -> None:
    driver = QueueDriver()
    rng = device(rate_limit=RateLimit(bytes_per_s=1, burst_bytes=8))
    active = activation(driver)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rng.run, active)
        await driver.ask([], [8])
        driver.add([], [64])
        driver.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert active.queues[0].queue.in_flight == 1
        nursery.cancel_scope.cancel()
    active.queues[0].queue.rewind()
    assert active.queues[0].queue.in_flight == 0
    rng = device()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rng.run, active)
        driver.doorbell.ring()
        (used,) = await driver.wait_used()
        assert used.written == 64
        nursery.cancel_scope.cancel()


# --- the source --------------------------------------------------------------------------------


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


async def test_a_source_is_read_in_place_of_the_hosts_own() -> None:
    driver = QueueDriver()
    async with running(device(source="/dev/zero"), driver):
        assert (await driver.ask([], [32])).data == bytes(32)


async def test_a_source_at_its_end_is_told_of_once_and_replaced(caplog) -> None:
    driver = QueueDriver()
    async with running(device(source="/dev/null"), driver):
        for _ in range(3):
            assert (await driver.ask([], [32])).data != bytes(32)
    assert [record.getMessage() for record in caplog.records] == [
        "/dev/null gives the guest no entropy (it is at its end): the host's own random numbers do."
    ]


async def test_a_source_that_keeps_its_readers_waiting_holds_one_thread_whatever_the_guest_does():
    """Each reset leaves a read behind; the threads are all the program's."""
    master, slave = os.openpty()
    tty.setraw(slave)
    rng = device(source=os.ttyname(slave))
    try:
        for _ in range(trio.to_thread.current_default_thread_limiter().total_tokens + 2):
            driver = QueueDriver()
            driver.add([], [32])
            driver.kick()
            with trio.move_on_after(0.01):
                await rng.run(activation(driver))
            rng.reset()
        with trio.fail_after(30):
            await trio.to_thread.run_sync(os.getpid)
            os.write(master, b"x" * 64)  # the read that was left behind takes some
            driver = QueueDriver()
            async with running(rng, driver):
                os.write(master, b"y" * 32)
                assert (await driver.ask([], [32])).data.strip(b"x") in (b"", b"y" * 32)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("name", ["missing", "file", "fifo"])
async def test_a_source_that_is_no_character_device_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"not random")
    os.mkfifo(tmp_path / "fifo")
    rng = device(source=tmp_path / name)
    with pytest.raises(ConfigError, match=name):
        async with rng.lifespan():
            raise AssertionError


# --- the plugin --------------------------------------------------------------------------------


def test_the_plugin_offers_the_device() -> None:
    factory = plugin.microvm_register_device()
    assert (factory.name, factory.virtio_id) == ("rng", 4)
    assert factory.create({}).device_id == 4


def test_the_plugin_is_cheap_to_import() -> None:
    code = "import sys, microvm_devices.rng.plugin as p; p.create({}); print('trio' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def test_options_that_it_does_not_know_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create({"rate": 3, "seed": 4, "source": "/dev/hwrng"})
    assert [problem.where for problem in caught.value.problems] == ["rate", "seed"]


@pytest.mark.parametrize("limit", ["fast", 1.5, True, 0, -1])
def test_a_rate_limit_that_is_none_is_refused(limit: object) -> None:
    with pytest.raises(ConfigError, match=r"rate_limit|bytes_per_s"):
        plugin.create({"rate_limit": limit})


def test_a_rate_limit_may_be_a_number_of_bytes_a_second_or_nothing() -> None:
    assert RngConfig(rate_limit=1000).rate_limit == RateLimit(bytes_per_s=1000)
    assert plugin.create({"rate_limit": None}).device_id == 4
