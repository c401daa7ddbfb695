"""Runs that end: pauses lose nothing, and nothing touches guest memory afterwards (13, 43)."""

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing

from microvm.config import DriveConfig
from microvm.testing.census import Census
from microvm_devices.blk import limits
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import S_OK, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES
from microvm_devices.blk.testing import GuestBlk, MemoryDisk, pack_segments

DRIVE = DriveConfig(path="/a/disk", queues=2)


class GatedDisk(MemoryDisk):
    """Reads and writes wait, in their thread, until the test lets one pass.

    It never calls the test's thread; the test looks at `entered`, a semaphore.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data[:] = b"\xd1" * self.size
        self.entered = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        self.done: list[tuple[str, int]] = []

    def _gate(self, name: str, offset: int) -> None:
        self.entered.release()
        assert self.passes.acquire(timeout=20)
        self.done.append((name, offset // 512))

    async def wait_entered(self) -> None:
        assert await trio.to_thread.run_sync(lambda: self.entered.acquire(timeout=20))

    def read(self, views: Sequence[memoryview], offset: int, length: int) -> int:
        self._gate("read", offset)
        return super().read(views, offset, length)

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        self._gate("write", offset)
        super().write(views, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._gate("zeroes", offset)
        super().write_zeroes(offset, length, unmap=unmap)


@contextmanager
def nothing_is_left() -> Iterator[None]:
    before = Census.take()
    yield
    assert Census.take() == before


@asynccontextmanager
async def running_until_cancelled(
    guest: GuestBlk, device: BlkDevice, disk: GatedDisk, *, threads: int = 1
) -> AsyncIterator[None]:
    """A run that is cancelled, when the block is left, before the thread's request may pass."""
    leave = trio.Event()

    async def run() -> None:
        async with guest.running(device):
            started.set()
            await leave.wait()

    started = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await started.wait()
        yield
        leave.set()
        await trio.testing.wait_all_tasks_blocked()
        disk.passes.release(threads)


async def test_a_run_ends_when_the_request_under_way_has_ended_and_no_sooner() -> None:
    """Row 13: whoever resets the device reads 0 only when its workers are quiet."""
    disk, guest = GatedDisk(), GuestBlk()
    device = BlkDevice(DRIVE, disk.opener())
    async with device.lifespan():
        async with running_until_cancelled(guest, device, disk):
            for sector in range(5):
                guest.submit(T_IN, sector, room=512)
            await disk.wait_entered()
        # The first is done and answered; the others were not begun.
        assert disk.done == [("read", 0)]
        assert [answer.data for answer in guest.answered().values()] == [b"\xd1" * 512]
        before = bytes(guest.memory.regions[0].view)
        disk.passes.release(10)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bytes(guest.memory.regions[0].view) == before
        assert disk.done == [("read", 0)]


@pytest.mark.parametrize("passes", range(6))
async def test_a_pause_loses_no_request_and_answers_none_twice(passes: int) -> None:
    """Row 43's drain: what was begun is done, the rest is served when the run goes on."""
    disk, guest = GatedDisk(), GuestBlk()
    device = BlkDevice(DRIVE, disk.opener())
    heads = []
    async with device.lifespan():
        async with running_until_cancelled(guest, device, disk):
            for sector in range(3):
                heads.append(guest.submit(T_OUT, sector, bytes([sector]) * 512))
                heads.append(guest.submit(T_IN, sector + 100, room=512))
            for _ in range(passes):
                await disk.wait_entered()
                disk.passes.release()
            await disk.wait_entered()
        answers = guest.answered()
        assert len(answers) == passes + 1
        disk.passes.release(6)
        async with guest.running(device, fresh=False):
            for head in heads:
                if head not in answers:
                    answers[head] = await guest.answer(head)
    assert [answers[head].status for head in heads] == [S_OK] * 6
    assert [sector for _, sector in disk.done] == [0, 100, 1, 101, 2, 102]
    assert disk.data[: 3 * 512] == b"\0" * 512 + b"\1" * 512 + b"\2" * 512


async def test_a_long_request_is_left_between_two_pieces_and_begun_again() -> None:
    disk, guest = GatedDisk(), GuestBlk()
    disk.size = 1 << 31
    device = BlkDevice(DRIVE, disk.opener())
    step = limits.ZEROES_PIECE_BYTES // 512
    async with device.lifespan():
        async with running_until_cancelled(guest, device, disk):
            head = guest.submit(T_WRITE_ZEROES, 0, pack_segments((0, 3 * step, 0)))
            after = guest.submit(T_FLUSH)
            await disk.wait_entered()
            disk.passes.release()
            await disk.wait_entered()
        assert disk.done == [("zeroes", 0), ("zeroes", step)]
        assert guest.answered() == {}
        disk.passes.release(3)
        async with guest.running(device, fresh=False):
            assert (await guest.answer(head)).status == S_OK
            assert (await guest.answer(after)).status == S_OK
        assert disk.done[2:] == [("zeroes", 0), ("zeroes", step), ("zeroes", 2 * step)]


@pytest.mark.parametrize("type_", [T_IN, T_OUT])
async def test_and_so_is_a_long_transfer(type_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PIECE_BYTES", 1024)
    disk, guest = GatedDisk(), GuestBlk()
    device = BlkDevice(DRIVE, disk.opener())
    async with device.lifespan():
        async with running_until_cancelled(guest, device, disk):
            if type_ == T_IN:
                head = guest.submit(T_IN, 0, room=3072)
            else:
                head = guest.submit(T_OUT, 0, b"p" * 3072)
            await disk.wait_entered()
        assert [sector for _, sector in disk.done] == [0]
        assert guest.answered() == {}
        disk.passes.release(3)
        async with guest.running(device, fresh=False):
            answer = await guest.answer(head)
        assert (answer.status, answer.written) == (S_OK, 3073 if type_ == T_IN else 1)
        assert [sector for _, sector in disk.done] == [0, 0, 2, 4]


async def test_all_queues_are_quiet_when_the_run_has_ended() -> None:
    disk, guest = GatedDisk(), GuestBlk(queues=2)
    device = BlkDevice(DRIVE, disk.opener())
    async with device.lifespan():
        async with running_until_cancelled(guest, device, disk, threads=2):
            for queue in range(2):
                guest.submit(T_IN, queue, room=512, queue=queue)
                guest.submit(T_IN, queue + 2, room=512, queue=queue)
            await disk.wait_entered()
            await disk.wait_entered()
        assert len(disk.done) == 2
        assert len(guest.answered(0)) == len(guest.answered(1)) == 1


async def test_ten_thousand_resets_leave_nothing() -> None:
    """Row 13, with requests under way each time."""
    disk, guest = MemoryDisk(), GuestBlk(mem_size=1 << 20)
    device = BlkDevice(DRIVE, disk.opener())
    async with device.lifespan():
        with nothing_is_left():
            for turn in range(500):
                async with guest.running(device):
                    guest.submit(T_OUT, turn % 100, b"r" * 512)
                    guest.submit(T_IN, turn % 100, room=512)
                    if turn % 3:
                        await trio.lowlevel.checkpoint()
                    if turn % 7 == 0:
                        await guest.flush()
        for _ in range(9500):
            async with guest.running(device):
                pass
        async with guest.running(device):
            assert await guest.write(0, b"s" * 512) == S_OK
            assert (await guest.read(0, 1)).data == b"s" * 512


async def test_no_view_of_guest_memory_outlives_the_run() -> None:
    """Or a front end's memory could not be unmapped."""
    import gc

    disk, guest = MemoryDisk(), GuestBlk()
    device = BlkDevice(DRIVE, disk.opener())
    async with device.lifespan():
        async with guest.running(device):
            assert await guest.write(0, b"v" * 512) == S_OK
            assert (await guest.read(0, 1)).status == S_OK
            assert await guest.write_zeroes((0, 1, 0)) == S_OK
            assert (await guest.read(1 << 50, 1)).status != S_OK
        gc.collect()
        ram = guest.memory.regions[0].view.obj
        left = [
            view
            for view in gc.get_objects()
            if isinstance(view, memoryview) and view.obj is ram and len(view) in (512, 16, 1)
        ]
        assert left == []


async def test_a_driver_that_never_stops_does_not_keep_the_host() -> None:
    """Row 43: other tasks run, however many requests there are from the page cache."""
    disk, guest = MemoryDisk(cached=True), GuestBlk(queue_size=256)
    queue = guest.queues[0]

    class Endless(MemoryDisk):
        """Of each request that is answered, the guest's other CPU makes a new one at once."""

        def read_cached(self, views: Sequence[memoryview], offset: int, length: int) -> bool:
            nonlocal served
            served += length
            for _ in queue.used():
                queue.add([bytes(16)], [65536, 1])
            return True

    served = turns = 0
    disk = Endless()
    async with guest.attached(BlkDevice(DRIVE, disk.opener())):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(60):
            queue.add([bytes(16)], [65536, 1])
        queue.kick()
        for turns in range(1, 50):
            await trio.lowlevel.checkpoint()
            assert served <= turns * (limits.TURN_BYTES + 65536)
    assert served > turns * limits.TURN_BYTES // 4
