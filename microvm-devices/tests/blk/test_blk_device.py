"""The device as a guest's driver sees it, over real guest memory."""

import errno
import logging
import os
import struct
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from microvm.config import DriveConfig, RateLimit
from microvm.errors import ImageError
from microvm.virtio.features import RING_FEATURES
from microvm_devices.blk import layout, limits
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import S_IOERR, S_OK, S_UNSUPP, T_GET_ID, T_IN, T_OUT
from microvm_devices.blk.raw_disk import open_raw_disk
from microvm_devices.blk.testing import ALL_FEATURES, FailingDisk, GuestBlk, MemoryDisk

DRIVE = DriveConfig(path="/a/disk")


def device_on(disk: MemoryDisk, config: DriveConfig = DRIVE) -> BlkDevice:
    return BlkDevice(config, disk.opener())


def contents(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


# --- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("buffers", [1, 7])
async def test_what_is_written_is_in_the_file_and_what_is_in_the_file_is_read(
    image: Path, buffers: int, indirect: bool
) -> None:
    device = BlkDevice(DriveConfig(path=image), open_raw_disk)
    guest = GuestBlk(indirect=indirect)
    before = contents(image)
    data = os.urandom(20 * 512)
    async with guest.attached(device):
        read = await guest.read(100, 8, buffers=buffers)
        assert (read.status, read.data, read.written) == (
            S_OK,
            before[100 * 512 : 108 * 512],
            8 * 512 + 1,
        )
        assert await guest.write(2000, data, buffers=buffers) == S_OK
        assert (await guest.read(2000, 20, buffers=buffers)).data == data
        assert await guest.flush() == S_OK
    after = before[: 2000 * 512] + data + before[2020 * 512 :]
    assert contents(image) == after


@pytest.mark.parametrize("cached", [False, True])
async def test_zeroed_and_discarded_sectors(cached: bool) -> None:
    """Row 39: after WRITE_ZEROES reads give zeros."""
    disk, guest = MemoryDisk(cached=cached), GuestBlk()
    disk.data[:] = b"\x11" * disk.size
    async with guest.attached(device_on(disk)):
        assert await guest.write_zeroes((1, 2, 0), (5, 1, 1)) == S_OK
        assert await guest.discard((7, 1, 0)) == S_OK
        data = (await guest.read(0, 9)).data
    sectors = [data[at : at + 512] for at in range(0, len(data), 512)]
    assert [index for index, sector in enumerate(sectors) if sector == bytes(512)] == [1, 2, 5]
    assert sectors[0] == sectors[3] == b"\x11" * 512


async def test_a_segment_that_can_not_be_served_spoils_the_whole_request_and_nothing_else() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    disk.data[:] = b"\x11" * disk.size
    async with guest.attached(device_on(disk)):
        assert await guest.write_zeroes((0, 1, 0), (2047, 2, 0)) == S_IOERR
        assert await guest.write_zeroes((0, 1, 0), (1, 1, 2)) == S_UNSUPP
        assert await guest.discard((0, 1, 1)) == S_UNSUPP
        assert await guest.write_zeroes((0, 1, 0)) == S_OK
    assert disk.data == bytes(512) + b"\x11" * (disk.size - 512)


async def test_large_zeroed_ranges_come_to_the_disk_in_pieces() -> None:
    """A run can be ended between two of them."""
    calls: list[tuple[int, int]] = []

    class Huge(MemoryDisk):
        def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
            calls.append((offset, length))

    disk, guest = Huge(), GuestBlk()
    disk.size = 1 << 31
    async with guest.attached(device_on(disk)):
        assert await guest.write_zeroes((8, limits.MAX_SEGMENT_SECTORS, 0)) == S_OK
    assert max(length for _, length in calls) <= limits.ZEROES_PIECE_BYTES
    assert sum(length for _, length in calls) == limits.MAX_SEGMENT_SECTORS * 512
    assert [offset for offset, _ in calls] == list(
        range(8 * 512, 8 * 512 + (1 << 30), limits.ZEROES_PIECE_BYTES)
    )


@pytest.mark.parametrize("type_", [T_IN, T_OUT])
async def test_large_transfers_come_to_the_disk_in_pieces(
    type_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PIECE_BYTES", 5000)
    disk, guest = MemoryDisk(), GuestBlk()
    disk.data[:] = os.urandom(disk.size)
    lengths: list[int] = []

    class Watched(MemoryDisk):
        def read(self, views, offset, length):  # type: ignore[no-untyped-def]
            lengths.append(length)
            return disk.read(views, offset, length)

        def write(self, views, offset, length):  # type: ignore[no-untyped-def]
            lengths.append(length)
            disk.write(views, offset, length)

    data = os.urandom(100 * 512)
    async with guest.attached(device_on(Watched())):
        if type_ == T_IN:
            answer = await guest.read(3, 100, buffers=9)
            assert answer.data == disk.data[3 * 512 : 103 * 512]
            assert answer.written == 100 * 512 + 1
        else:
            assert await guest.write(3, data, buffers=9) == S_OK
            assert disk.data[3 * 512 : 103 * 512] == data
    assert lengths == [5000] * 10 + [1200]


# --- 40 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 19, 20, 21, 4096])
@pytest.mark.parametrize("serial", [None, "s", "exactly-20-bytes-lng"])
async def test_the_serial_number_fills_twenty_bytes_or_as_many_as_there_are(
    room: int, serial: str | None
) -> None:
    """Row 40."""
    guest = GuestBlk()
    config = DriveConfig(path="/a/disk", serial=serial)
    async with guest.attached(device_on(MemoryDisk(), config)):
        answer = await guest.get_id(room)
    expected = (serial or "").encode().ljust(20, b"\0")[:room]
    assert answer.status == S_OK
    assert answer.data[:20] == expected[:room]
    assert set(answer.data[20:]) <= {0xA5}  # as it was
    assert answer.written == (room + 1 if room <= 20 else 20)


async def test_a_flush_flushes_whatever_else_it_says() -> None:
    """Row 40: with a sector, with data, with room for data; also where it was not negotiated."""
    disk = MemoryDisk()
    for features in (ALL_FEATURES, RING_FEATURES):
        guest = GuestBlk(features=features)
        async with guest.attached(device_on(disk)):
            assert (await guest.ask(layout.T_FLUSH, 7)).status == S_OK
            assert (await guest.ask(layout.T_FLUSH, 1 << 60, b"data" * 999)).status == S_OK
            assert (await guest.ask(layout.T_FLUSH, 0, room=512)).status == S_OK
    assert disk.flushes == 6


# --- 41, 42: errors of the host ------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
async def test_errors_of_the_host_are_io_errors_and_later_requests_are_served(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 42: told once to the owner, counted after that."""
    failing = True
    disk = FailingDisk(lambda name: code if failing and name != "flush" else None)
    device, guest = device_on(disk), GuestBlk()
    with caplog.at_level(logging.ERROR):
        async with guest.attached(device):
            for _ in range(3):
                assert await guest.write(0, b"x" * 512) == S_IOERR
                assert (await guest.read(0, 1)).status == S_IOERR
                assert await guest.write_zeroes((0, 1, 0)) == S_IOERR
                assert await guest.discard((0, 1, 0)) == S_IOERR
            failing = False
            assert await guest.write(0, b"x" * 512) == S_OK
            assert (await guest.read(0, 1)).data == b"x" * 512
    assert device.counters()["errors"] == 12
    assert len(caplog.records) == 4
    assert os.strerror(code) in caplog.text


@pytest.mark.parametrize("name", ["write", "flush", "read"])
async def test_an_error_at_any_call_is_reported_for_that_request(name: str) -> None:
    """4.3.5: EIO at the n-th call, for each n. In write-through mode each write is flushed."""
    for n in range(4):
        calls = 0

        def fails(called: str, n: int = n) -> int | None:
            nonlocal calls
            if called != name:
                return None
            calls += 1
            return errno.EIO if calls == n + 1 else None

        guest = GuestBlk(features=RING_FEATURES)
        async with guest.attached(device_on(FailingDisk(fails))):
            writes = [await guest.write(at, b"w" * 512) for at in range(4)]
            reads = [(await guest.read(at, 1)).status for at in range(4)]
        bad = [S_IOERR if at == n else S_OK for at in range(4)]
        if name == "flush":  # latched: no later flush proves anything
            bad = [S_OK if at < n else S_IOERR for at in range(4)]
        assert writes == (bad if name != "read" else [S_OK] * 4)
        assert reads == (bad if name == "read" else [S_OK] * 4)


async def test_a_failed_flush_stays_failed_over_a_reset_until_the_disk_is_attached_anew() -> None:
    codes = iter([errno.EIO])
    disk, guest = (
        FailingDisk(lambda name: next(codes, None) if name == "flush" else None),
        GuestBlk(),
    )
    device = device_on(disk)
    async with device.lifespan():
        async with guest.running(device):
            assert await guest.flush() == S_IOERR
            assert await guest.flush() == S_IOERR
        async with guest.running(device):
            assert await guest.write(0, bytes(512)) == S_OK
            assert await guest.flush() == S_IOERR
    async with guest.attached(device):
        assert await guest.flush() == S_OK


async def test_a_file_cut_off_on_the_host_gives_what_there_is_and_errors_beyond(
    image: Path,
) -> None:
    """Row 41."""
    before = contents(image)
    device, guest = BlkDevice(DriveConfig(path=image), open_raw_disk), GuestBlk()
    async with guest.attached(device):
        os.truncate(image, 4096)
        answer = await guest.read(7, 2)
        assert (answer.status, answer.written) == (S_IOERR, 512)
        assert answer.data == before[7 * 512 : 4096] + b"\xa5" * 512  # nothing is made up
        assert (await guest.read(1, 7)).data == before[512:4096]
        assert await guest.write(8, bytes(512)) == S_IOERR
        assert await guest.write(7, b"n" * 512) == S_OK
    assert contents(image) == before[: 7 * 512] + b"n" * 512


# --- flushes of files ----------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "darwin", reason="F_FULLFSYNC there")
async def test_a_flush_is_an_fdatasync_of_the_file_that_has_returned_before_the_answer(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of another, not none (shipped elsewhere), and not later."""
    begun, go = threading.Semaphore(0), threading.Semaphore(0)
    synced: list[str] = []

    def fdatasync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        begun.release()
        assert go.acquire(timeout=20)
        real(fd)

    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    device, guest = BlkDevice(DriveConfig(path=image), open_raw_disk), GuestBlk()
    async with guest.attached(device):
        assert await guest.write(0, bytes(512)) == S_OK
        assert synced == []
        flush = guest.submit(layout.T_FLUSH)
        assert await trio.to_thread.run_sync(lambda: begun.acquire(timeout=20))
        await trio.testing.wait_all_tasks_blocked()
        assert guest.answered() == {}
        go.release()
        assert (await guest.answer(flush)).status == S_OK
    assert synced == [str(image)]


# --- 38: read-only -------------------------------------------------------------------------------


async def test_a_read_only_disk_is_not_written(image: Path) -> None:
    """Row 38, for a driver that has accepted what was never offered."""
    before = contents(image)
    config = DriveConfig(path=image, read_only=True)
    device, guest = BlkDevice(config, open_raw_disk), GuestBlk()
    async with guest.attached(device):
        assert await guest.write(0, bytes(512)) == S_IOERR
        assert await guest.write_zeroes((0, 1, 0)) == S_IOERR
        assert await guest.discard((0, 1, 0)) == S_IOERR
        assert await guest.flush() == S_OK
        assert (await guest.read(0, 1)).data == before[:512]
    assert device.counters()["flushes"] == 1
    assert contents(image) == before


# --- features and configuration ------------------------------------------------------------------


def offered(**drive: object) -> int:
    return BlkDevice(DriveConfig(path="/a/disk", **drive), MemoryDisk().opener()).features  # type: ignore[arg-type]


def test_a_flush_is_offered_wherever_there_is_something_to_flush() -> None:
    """5.2.5.2: and always beside CONFIG_WCE."""
    assert offered() & layout.F_FLUSH
    assert offered() & layout.F_CONFIG_WCE
    assert offered(writeback=False) & layout.F_FLUSH
    assert not offered(writeback=False) & layout.F_CONFIG_WCE
    read_only = offered(read_only=True)
    assert read_only & layout.F_RO
    assert not read_only & (layout.F_FLUSH | layout.F_CONFIG_WCE | layout.F_DISCARD)
    assert not read_only & layout.F_WRITE_ZEROES
    assert not offered() & (layout.F_MQ | layout.F_RO)
    assert offered(queues=2) & layout.F_MQ


async def test_the_configuration_space_describes_the_disk() -> None:
    config = DriveConfig(path="/a/disk", queues=3)
    device = device_on(MemoryDisk(1 << 20), config)
    async with device.lifespan():
        assert len(device.queue_max_sizes) == 3
        space = device.read_config(0, 72)
        capacity, size_max, seg_max = struct.unpack_from("<QII", space)
        assert (capacity, size_max, seg_max) == (2048, 0, limits.QUEUE_SIZE - 2)
        assert struct.unpack_from("<IBBHI", space, 20) == (512, 3, 0, 8, 0)
        assert struct.unpack_from("<BxH", space, 32) == (1, 3)
        assert struct.unpack_from("<IIIIIB", space, 36) == (1 << 21, 16, 8, 1 << 21, 16, 1)


async def test_reads_of_the_configuration_never_leave_it() -> None:
    """Row 4."""
    device = device_on(MemoryDisk())
    assert device.read_config(0, 8) == bytes(8)  # before there is a disk
    async with device.lifespan():
        whole = device.read_config(0, 100)
        assert whole[72:] == bytes(28)
        for offset in range(110):
            for length in (0, 1, 2, 4, 8):
                expected = whole[offset : offset + length].ljust(length, b"\0")
                assert device.read_config(offset, length) == expected
        assert device.read_config(-4, 8) == bytes(8)
        assert device.read_config(0xFFFF_FFF0, 64) == bytes(64)


async def test_of_the_configuration_a_driver_writes_one_field() -> None:
    """Row 5."""
    device = device_on(MemoryDisk())
    async with device.lifespan():
        before = device.read_config(0, 72)
        for offset in range(-8, 80):
            if not offset <= layout.WRITEBACK_OFFSET < offset + 4:
                device.write_config(offset, b"\xff" * 4)
        device.write_config(1 << 33, b"\xff")
        assert device.read_config(0, 72) == before
        device.write_config(layout.WRITEBACK_OFFSET - 2, b"\xff\xff\0\xff")
        assert device.read_config(layout.WRITEBACK_OFFSET, 1) == b"\0"
        device.write_config(layout.WRITEBACK_OFFSET, b"\x07")
        assert device.read_config(layout.WRITEBACK_OFFSET, 1) == b"\x01"


async def test_a_driver_that_wants_no_write_back_has_each_write_flushed_until_it_is_reset() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    device = device_on(disk)
    async with device.lifespan():
        async with guest.running(device):
            device.write_config(layout.WRITEBACK_OFFSET, b"\0")
            for count in range(1, 4):
                assert await guest.write(0, bytes(512)) == S_OK
                assert disk.flushes == count
        async with guest.running(device):
            assert device.read_config(layout.WRITEBACK_OFFSET, 1) == b"\1"
            assert await guest.write(0, bytes(512)) == S_OK
            assert disk.flushes == 3


async def test_a_drive_without_write_back_has_each_write_flushed() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    config = DriveConfig(path="/a/disk", writeback=False)
    async with guest.attached(device_on(disk, config)):
        assert await guest.write(0, bytes(512)) == S_OK
        assert disk.flushes == 1


# --- queues --------------------------------------------------------------------------------------


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


# --- lifespan --------------------------------------------------------------------------------


async def test_a_disk_in_use_is_refused_when_the_machine_starts(image: Path) -> None:
    """Row 45: and not when it is described, which happens before and in another process too."""
    first, second = (BlkDevice(DriveConfig(path=image), open_raw_disk) for _ in range(2))
    async with first.lifespan():
        with pytest.raises(ImageError, match="in use"):
            async with second.lifespan():
                raise AssertionError
    async with second.lifespan():
        pass


async def test_the_disk_is_given_back_however_the_machine_ends() -> None:
    disk = MemoryDisk()
    with pytest.raises(ZeroDivisionError):
        async with device_on(disk).lifespan():
            raise ZeroDivisionError
    assert disk.closed


async def test_what_a_guest_did_not_flush_is_flushed_when_it_ends() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    async with guest.attached(device_on(disk)):
        assert await guest.write(0, bytes(512)) == S_OK
        assert disk.flushes == 0
    assert disk.flushes == 1


async def test_and_an_error_of_that_flush_is_told_to_the_owner(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = FailingDisk(lambda name: errno.EIO if name == "flush" else None)
    guest = GuestBlk()
    async with guest.attached(device_on(disk)):
        assert await guest.write(0, bytes(512)) == S_OK
    assert "may be lost" in caplog.text


async def test_a_disk_that_was_only_read_is_not_flushed() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    async with guest.attached(device_on(disk)):
        await guest.read(0, 1)
        await guest.ask(T_GET_ID, room=20)
    assert disk.flushes == 0
