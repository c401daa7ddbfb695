"""What the host's file does to a guest's requests: errors, flushes, one that is in use."""

import errno
import logging
import os
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from microvm.config import DriveConfig
from microvm.errors import ImageError
from microvm.virtio.features import RING_FEATURES
from microvm_devices.blk import layout
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import S_IOERR, S_OK, T_GET_ID
from microvm_devices.blk.raw_disk import open_raw_disk
from microvm_devices.blk.testing import FailingDisk, GuestBlk, MemoryDisk

from .drives import contents, device_on

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
