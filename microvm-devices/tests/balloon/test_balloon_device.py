"""The balloon as a guest's driver sees it, on real memory; row 66 of the hazard catalogue."""

import mmap
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.errors import ConfigError, GuestError, GuestGone, GuestMemoryError, QueueError
from microvm.memory import GuestMemory
from microvm.testing.queue_driver import GuestHeap, QueueDriver, activation
from microvm.virtio.chain import DESC_F_INDIRECT, DESCRIPTOR
from microvm.virtio.features import RING_FEATURES
from microvm_devices.balloon import device as device_module
from microvm_devices.balloon import plugin
from microvm_devices.balloon.device import BalloonDevice
from microvm_devices.balloon.statistics import STAT

PAGE = 4096
MIB = 1 << 20
MEMORY_MIB = 64
RINGS_MIB = 4
"""Of the bottom of guest memory, where the double has its rings and buffers."""
STATS, OOM, POISON, REPORTING = 2, 4, 16, 32


def device(**options: object) -> BalloonDevice:
    made = plugin.create(options)
    assert isinstance(made, BalloonDevice)
    return made


class Driver:
    """A guest's balloon driver."""

    def __init__(
        self,
        balloon: BalloonDevice,
        *,
        features: int | None = None,
        memory: GuestMemory | None = None,
    ) -> None:
        self.balloon = balloon
        self.features = balloon.features if features is None else features
        self.memory = memory or GuestMemory.anonymous(MEMORY_MIB * MIB)
        heap = GuestHeap(PAGE, RINGS_MIB * MIB)
        count = 2 + bool(self.features & STATS) + bool(self.features & REPORTING)
        self.queues = [QueueDriver(self.memory, heap=heap, size=64) for _ in range(count)]
        self.inflate, self.deflate = self.queues[:2]
        self.config_changes = 0

    @asynccontextmanager
    async def driving(self) -> AsyncIterator[None]:
        self.balloon.reset()
        active = activation(
            *self.queues,
            features=RING_FEATURES | self.features,
            config_changed=self._config_changed,
        )
        async with self.balloon.lifespan(), trio.open_nursery() as nursery:
            nursery.start_soon(self.balloon.run, active)
            yield
            nursery.cancel_scope.cancel()

    def _config_changed(self) -> None:
        self.config_changes += 1

    async def give(self, pfns: Sequence[int]) -> None:
        for begin in range(0, len(pfns), 256):
            part = pfns[begin : begin + 256]
            await self.inflate.ask([struct.pack(f"<{len(part)}I", *part)])

    def fill(self) -> None:
        self.memory.write(RINGS_MIB * MIB, b"\xaa" * ((MEMORY_MIB - RINGS_MIB) * MIB))

    def rss_mib(self) -> int:
        """What the host really has of the guest's memory, by /proc/self/smaps."""
        import ctypes

        view = self.memory.regions[0].view
        begin = ctypes.addressof(ctypes.c_char.from_buffer(view))
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        rss = 0
        for line in lines:
            head = line.split(" ", 1)[0]
            if "-" in head and not head.endswith(":"):
                low, high = (int(part, 16) for part in head.split("-"))
                inside = begin <= low and high <= begin + len(view)
            elif line.startswith("Rss:") and inside:
                rss += int(line.split()[1]) * 1024
        return rss // MIB


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


# --- row 66 ------------------------------------------------------------------------------------


async def run_until_error(balloon: BalloonDevice, driver: Driver) -> BaseException:
    active = activation(*driver.queues, features=RING_FEATURES | driver.features)
    with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(10):
        await balloon.run(active)
    (error,) = caught.value.exceptions
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


@pytest.mark.parametrize("pfn", [MEMORY_MIB * 256, 0xFFFF_FFFF, 1 << 31])
async def test_row_66_pages_that_are_not_ram_are_the_drivers_fault(pfn: int) -> None:
    """Row 66."""
    balloon = device()
    driver = Driver(balloon)
    driver.inflate.add([struct.pack("<I", pfn)])
    assert isinstance(await run_until_error(balloon, driver), GuestMemoryError)
    assert balloon.counters()["errors"] == 1


@pytest.mark.parametrize("length", [4 * MEMORY_MIB * 256 + 4, 128 * MIB])
async def test_row_66_more_pages_than_the_guest_has_are_not_looked_at(length: int) -> None:
    """Row 66: one too many, and 128 MiB of numbers, all in the same memory."""
    balloon = device()
    driver = Driver(balloon)
    pieces = [min(4 * MIB, length - begin) for begin in range(0, length, 4 * MIB)]
    for index, piece in enumerate(pieces):
        flags = 1 if index + 1 < len(pieces) else 0
        driver.inflate.write_descriptor(index, 8 * MIB, piece, flags, index + 1)
    driver.inflate.offer(0)
    error = await run_until_error(balloon, driver)
    assert isinstance(error, QueueError)
    assert balloon.counters()["inflated_bytes"] == 0


async def test_row_66_a_guest_that_gives_its_own_rings_away_hurts_nobody_else() -> None:
    """Row 66: every page of its memory, those of the rings and of the list itself among them."""
    balloon = device()
    driver = Driver(balloon)
    everything = struct.pack(f"<{MEMORY_MIB * 256}I", *range(MEMORY_MIB * 256))
    driver.memory.write(32 * MIB, everything)
    driver.inflate.write_descriptor(0, 32 * MIB, len(everything), 0)
    driver.inflate.offer(0)
    # Its rings are zeros then, and its index has gone back.
    assert isinstance(await run_until_error(balloon, driver), QueueError)
    assert driver.memory.read(driver.inflate.layout.desc, 16) == bytes(16)
    assert balloon.counters()["inflated_bytes"] >= 32 * MIB


@pytest.mark.parametrize("way", ["a long list", "a long run", "a long report"])
async def test_row_66_other_tasks_have_their_turn_in_the_middle_of_a_chain(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 66: 32 MiB, in pieces that are smaller than usual."""
    monkeypatch.setattr(device_module, "PFNS_AT_ONCE", 64 if way == "a long list" else 1 << 20)
    monkeypatch.setattr(device_module, "BYTES_AT_ONCE", 64 * PAGE)
    balloon = device()
    driver = Driver(balloon)
    step = 2 if way == "a long list" else 1  # no run is longer than a page
    pfns = range(8 * 256, 40 * 256, step)
    driver.memory.write(6 * MIB, struct.pack(f"<{len(pfns)}I", *pfns))
    queue = driver.queues[3] if way == "a long report" else driver.inflate
    if way == "a long report":
        queue.write_descriptor(0, 8 * MIB, 32 * MIB, 2)
    else:
        queue.write_descriptor(0, 6 * MIB, 4 * len(pfns), 0)
    turns = 0
    async with driver.driving():
        await trio.testing.wait_all_tasks_blocked()
        queue.offer(0)
        queue.kick()
        while not balloon.counters()["requests"]:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns >= len(pfns) // 64 - 1  # between the pieces


def two_pages_apart() -> bytes:
    """4096 page numbers, no two of them in a row."""
    return struct.pack("<4096I", *range(8 * 256, 40 * 256, 2))


@pytest.mark.parametrize("way", ["scattered pages", "small reports", "chains without an end"])
async def test_row_66_a_turn_is_bounded_in_calls_and_bytes_and_chains(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 66: whatever is done in pieces just too small to count by themselves."""
    monkeypatch.setattr(device_module, "BYTES_AT_ONCE", 64 * PAGE)
    monkeypatch.setattr(device_module, "CALLS_AT_ONCE", 16)
    reclaimed: list[int] = []
    region = GuestMemory.anonymous(MEMORY_MIB * MIB).regions[0]
    counting = attrs.evolve(region, reclaim=lambda offset, size: reclaimed.append(size) or size)
    balloon = device()
    driver = Driver(balloon, memory=GuestMemory([counting]))
    queue, readable = driver.inflate, True
    if way == "scattered pages":
        driver.memory.write(6 * MIB, two_pages_apart())
        chains, calls = 1, 4096
        queue.write_descriptor(0, 6 * MIB, 4 * 4096, 0)
    else:
        if way == "small reports":
            queue, readable = driver.queues[3], False
        else:
            queue = driver.deflate
        chains, calls = 64, 0 if readable else 64 * 64
        table = [
            DESCRIPTOR.pack(8 * MIB, 63 * PAGE, (index < 63) | (0 if readable else 2), index + 1)
            for index in range(64)
        ]
        driver.memory.write(6 * MIB, b"".join(table))
        for head in range(chains):
            queue.write_descriptor(head, 6 * MIB, 16 * len(table), DESC_F_INDIRECT)
    most = [0, 0, 0]
    async with driver.driving():
        await trio.testing.wait_all_tasks_blocked()
        for head in range(chains):
            queue.offer(head)
        queue.kick()
        before = (0, 0, 0)
        while before[2] < chains:
            await trio.lowlevel.checkpoint()
            now = (len(reclaimed), sum(reclaimed), balloon.counters()["requests"])
            most = [max(one, b - a) for one, a, b in zip(most, before, now, strict=True)]
            before = now
    assert len(reclaimed) == calls
    # Of two tasks in a turn either may be the first, so that one may see two turns of the other.
    assert most[0] <= 2 * 16
    assert most[1] <= 2 * 64 * PAGE
    assert most[2] <= 2


async def swallow(balloon: BalloonDevice, driver: Driver) -> None:
    try:
        await balloon.run(activation(*driver.queues, features=RING_FEATURES | driver.features))
    except* GuestError:
        pass


@given(
    chains=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.binary(max_size=40), max_size=3), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_row_66_whatever_a_driver_sends_ends_in_work_or_in_a_guests_error(chains: list) -> None:
    """Row 66: any bytes on any queue."""
    balloon = device()
    driver = Driver(balloon)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swallow, balloon, driver)
            for queue, readable, writable in chains:
                driver.queues[queue].add(readable, [64] if writable or not readable else [])
                driver.queues[queue].kick()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert balloon.counters()["reclaimed_bytes"] <= MEMORY_MIB * MIB * len(chains)
    assert attrs.asdict(balloon._config)["target_mib"] == balloon.target_mib
    assert mmap.PAGESIZE == PAGE
