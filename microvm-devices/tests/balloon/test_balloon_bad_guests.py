"""Guests that give what is not theirs, or too much at once; row 66 of the hazard catalogue."""

import mmap
import struct

import attrs
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.errors import GuestError, GuestMemoryError, QueueError
from microvm.memory import GuestMemory
from microvm.testing.queue_driver import activation
from microvm.virtio.chain import DESC_F_INDIRECT, DESCRIPTOR
from microvm.virtio.features import RING_FEATURES
from microvm_devices.balloon import device as device_module
from microvm_devices.balloon.device import BalloonDevice

from .balloon_driver import MEMORY_MIB, MIB, PAGE, Driver, device


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
