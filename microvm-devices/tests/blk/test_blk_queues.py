"""Many requests on many queues: none holds up another, and they are counted and limited."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from microvm.config import DriveConfig, RateLimit
from microvm_devices.blk import layout, limits
from microvm_devices.blk.layout import S_IOERR, S_OK, S_UNSUPP, T_GET_ID, T_IN, T_OUT
from microvm_devices.blk.testing import Answer, GuestBlk, MemoryDisk

from .drives import device_on


async def test_each_queue_is_served_and_a_slow_one_holds_up_no_other() -> None:
    gate = trio.Event()
    disk = MemoryDisk(cached=True)

    class Slow(MemoryDisk):
        def flush(self) -> None:
            trio.from_thread.run(gate.wait, trio_token=token)

    token = trio.lowlevel.current_trio_token()
    disk = Slow(cached=True)
    guest = GuestBlk(queues=3)
    async with guest.attached(device_on(disk, DriveConfig(path="/a/disk", queues=3))):
        flush = guest.submit(layout.T_FLUSH, queue=0)
        await trio.testing.wait_all_tasks_blocked()
        for queue in (1, 2):
            assert await guest.write(queue, b"q" * 512, queue=queue) == S_OK
            assert (await guest.read(queue, 1, queue=queue)).data == b"q" * 512
        assert guest.answered(0) == {}
        gate.set()
        assert (await guest.answer(flush, 0)).status == S_OK


async def test_a_driver_may_use_fewer_queues_than_there_are() -> None:
    guest = GuestBlk(queues=1)
    config = DriveConfig(path="/a/disk", queues=4)
    async with guest.attached(device_on(MemoryDisk(), config)):
        assert await guest.write(0, bytes(512)) == S_OK


async def test_many_requests_at_once_are_one_hop_to_the_thread() -> None:
    device, guest = device_on(MemoryDisk()), GuestBlk(queue_size=256)
    async with device.lifespan():
        async with guest.running(device):
            await trio.testing.wait_all_tasks_blocked()
            heads = [guest.submit(T_OUT, n, bytes([n]) * 512) for n in range(60)]
            for head in heads:
                assert (await guest.answer(head)).status == S_OK
        assert device.counters()["handed_over"] == 1


async def test_a_serial_number_asked_for_behind_a_write_is_given_too() -> None:
    """Found by the fuzzer: the thread took it for a request that changes the disk."""
    guest = GuestBlk()
    config = DriveConfig(path="/a/disk", serial="mine")
    async with guest.attached(device_on(MemoryDisk(), config)):
        write = guest.submit(T_OUT, 0, bytes(512))
        name = guest.submit(T_GET_ID, room=20)
        assert (await guest.answer(write)).status == S_OK
        assert (await guest.answer(name)).data == b"mine".ljust(20, b"\0")


async def test_a_large_copy_from_the_page_cache_does_not_hold_up_other_tasks() -> None:
    device, guest = device_on(MemoryDisk(8 << 20, cached=True)), GuestBlk()
    sectors = limits.INLINE_BYTES // 512
    async with guest.attached(device):
        assert (await guest.read(0, sectors, buffers=4)).status == S_OK
        assert device.counters()["handed_over"] == 0
        assert (await guest.read(0, sectors + 1, buffers=4)).status == S_OK
        assert device.counters()["handed_over"] == 1


async def test_requests_are_counted_by_what_the_guest_sees() -> None:
    guest = GuestBlk()
    device = device_on(MemoryDisk(cached=True))
    async with guest.attached(device):
        await guest.write(0, bytes(1024))
        await guest.read(0, 3)
        await guest.read(1 << 40, 3)
        await guest.flush()
        await guest.ask(99)
    assert device.counters() == {
        "requests": 5,
        "read_bytes": 1536,
        "written_bytes": 1024,
        "flushes": 1,
        "errors": 2,
        "throttled": 0,
        "handed_over": 2,
    }


def test_requests_wait_for_the_rate_limit() -> None:
    """On trio's own clock: 3 a second, and 10 of them take 3 s."""
    limit = RateLimit(ops_per_s=3, burst_ops=1)

    async def main() -> float:
        guest = GuestBlk()
        device = device_on(MemoryDisk(cached=True), DriveConfig(path="/a/disk", rate_limit=limit))
        async with guest.attached(device):
            start = trio.current_time()
            heads = [guest.submit(T_IN, n, room=512) for n in range(10)]
            for head in heads:
                assert (await guest.answer(head)).status == S_OK
            assert device.counters()["throttled"] >= 9
            return trio.current_time() - start

    elapsed = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert 2.9 < elapsed < 3.1


def test_bytes_are_limited_too() -> None:
    limit = RateLimit(bytes_per_s=4096, burst_bytes=512)

    async def main() -> float:
        guest = GuestBlk()
        device = device_on(MemoryDisk(cached=True), DriveConfig(path="/a/disk", rate_limit=limit))
        async with guest.attached(device):
            start = trio.current_time()
            for _ in range(5):
                assert (await guest.read(0, 8)).status == S_OK
            return trio.current_time() - start

    elapsed = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert 3.8 < elapsed < 4.1


@pytest.mark.parametrize(
    ("ask", "seconds"),
    [
        (lambda guest: guest.write_zeroes(*[(8, 128, 0)] * 16), 16 * 128 / 8),
        (lambda guest: guest.write_zeroes((8, 128, 1)), 128 / 8),
        (lambda guest: guest.discard(*[(8, 128, 0)] * 16), 16),
    ],
)
def test_zeros_count_as_data_and_discards_as_a_block_each(
    ask: Callable[[GuestBlk], Awaitable[int]], seconds: float
) -> None:
    """At 8 sectors a second: what a request of a few hundred bytes makes the host write."""
    limit = RateLimit(bytes_per_s=4096, burst_bytes=512)

    async def main() -> float:
        guest = GuestBlk()
        device = device_on(MemoryDisk(), DriveConfig(path="/a/disk", rate_limit=limit))
        async with guest.attached(device):
            start = trio.current_time()
            assert await ask(guest) == S_OK
            assert (await guest.read(0, 1)).status == S_OK
            return trio.current_time() - start

    elapsed = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert seconds - 0.2 < elapsed < seconds + 0.2


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        (lambda guest: guest.ask(T_IN, 1 << 40, room=1 << 20), S_IOERR),
        (lambda guest: guest.ask(T_OUT, 1 << 40, bytes(1 << 20)), S_IOERR),
        (lambda guest: guest.ask(99, 0, bytes(1 << 20)), S_UNSUPP),
    ],
)
def test_a_request_that_is_refused_costs_an_operation_and_no_bytes(
    ask: Callable[[GuestBlk], Awaitable[Answer]], status: int
) -> None:
    """Nobody moves them. At 4 KiB a second the next request would wait for minutes."""
    limit = RateLimit(bytes_per_s=4096, burst_bytes=512, ops_per_s=1, burst_ops=1)

    async def main() -> float:
        guest = GuestBlk()
        device = device_on(MemoryDisk(), DriveConfig(path="/a/disk", rate_limit=limit))
        async with guest.attached(device):
            start = trio.current_time()
            assert (await ask(guest)).status == status
            assert (await guest.read(0, 1)).status == S_OK
            return trio.current_time() - start

    elapsed = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert 0.9 < elapsed < 1.1
