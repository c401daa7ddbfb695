"""When a write may be reported (virtio 1.2, 5.2.5.2, 5.2.6.2), and flushes that failed."""

import errno
import threading

import pytest

from microvm_devices.blk import limits
from microvm_devices.blk.disk import FlushLatch
from microvm_devices.blk.durability import WriteMode
from microvm_devices.blk.executor import Executor
from microvm_devices.blk.layout import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_WRITE_ZEROES,
    S_IOERR,
    S_UNSUPP,
    SECTOR_BYTES,
    T_DISCARD,
    T_OUT,
    T_WRITE_ZEROES,
)
from microvm_devices.blk.request import PENDING, Request, judge
from microvm_devices.blk.testing import FailingDisk, MemoryDisk, pack_segments

BOTH = F_FLUSH | F_CONFIG_WCE


@pytest.mark.parametrize(
    ("configured", "features", "through"),
    [
        (True, 0, True),
        (True, F_FLUSH, False),
        (True, F_CONFIG_WCE, True),
        (True, BOTH, False),
        (False, 0, True),
        (False, F_FLUSH, True),
        (False, BOTH, True),  # can't be: the field is not offered; and then, too
    ],
)
def test_what_was_negotiated_decides(configured: bool, features: int, through: bool) -> None:
    mode = WriteMode(configured=configured)
    mode.begin(features)
    assert mode.through == through


def test_the_field_decides_where_it_was_accepted() -> None:
    mode = WriteMode(configured=True)
    mode.begin(BOTH)
    assert mode.writeback == 1
    mode.write(0)
    assert (mode.writeback, mode.through) == (0, True)
    mode.write(1)
    assert (mode.writeback, mode.through) == (1, False)


def test_the_field_begins_at_0_where_the_driver_can_not_flush() -> None:
    """5.2.5.2: CONFIG_WCE without FLUSH."""
    mode = WriteMode(configured=True)
    mode.begin(F_CONFIG_WCE)
    assert (mode.writeback, mode.through) == (0, True)
    mode.write(1)  # it has said that it doesn't need to
    assert not mode.through


@pytest.mark.parametrize("features", [0, F_FLUSH])
def test_a_driver_that_has_not_accepted_the_field_can_not_write_it(features: int) -> None:
    mode = WriteMode(configured=True)
    mode.begin(features)
    before = mode.through
    mode.write(0)
    assert mode.writeback == 1
    assert mode.through == before


def test_nobody_writes_the_field_of_a_drive_that_is_written_through() -> None:
    mode = WriteMode(configured=False)
    mode.begin(BOTH)
    mode.write(1)
    assert (mode.writeback, mode.through) == (0, True)


def test_a_pause_keeps_the_mode() -> None:
    mode = WriteMode(configured=True)
    mode.begin(BOTH)
    mode.write(0)
    mode.end()
    mode.begin(BOTH)
    assert mode.through


def test_a_reset_begins_anew_and_what_the_next_driver_read_holds() -> None:
    """It reads the field before the device runs (Linux does): from the end of the last run on."""
    mode = WriteMode(configured=True)
    mode.begin(BOTH)
    mode.write(0)
    mode.end()
    assert mode.writeback == 1
    mode.reset()
    mode.begin(BOTH)
    assert (mode.writeback, mode.through) == (1, False)


def test_a_driver_may_write_the_field_before_the_device_runs() -> None:
    mode = WriteMode(configured=True)
    mode.write(0)
    mode.reset()
    mode.begin(BOTH)
    assert mode.through


# --- flushes that fail -----------------------------------------------------------------------


def test_after_a_flush_that_failed_every_other_fails_too() -> None:
    """Row 42: Linux tells of lost pages once, and a later fsync that succeeds proves nothing."""
    codes = iter([None, errno.EIO])
    disk = FailingDisk(lambda name: next(codes, None))
    latch = FlushLatch(disk)
    latch.flush()
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            latch.flush()
        assert caught.value.errno == errno.EIO
    assert "earlier flush" in str(caught.value)
    assert disk.flushes == 1
    FlushLatch(disk).flush()  # attached anew


def test_of_two_flushes_at_once_neither_hides_the_error_from_the_other() -> None:
    """The kernel gives the error to one fsync alone."""
    codes = iter([errno.EIO])
    begun, go = threading.Event(), threading.Event()

    def fails(name: str) -> int | None:
        begun.set()
        go.wait()
        return next(codes, None)

    latch = FlushLatch(FailingDisk(fails))
    outcomes: list[int | None] = []

    def flush() -> None:
        try:
            latch.flush()
            outcomes.append(None)
        except OSError as error:
            outcomes.append(error.errno)

    threads = [threading.Thread(target=flush) for _ in range(2)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert outcomes == [errno.EIO, errno.EIO]


def test_a_flush_is_due_from_a_change_to_the_next_flush() -> None:
    latch = FlushLatch(MemoryDisk())
    assert not latch.unsettled
    latch.changed()
    assert latch.unsettled
    latch.flush()
    assert not latch.unsettled


def test_what_is_written_while_a_flush_is_under_way_waits_for_the_next() -> None:
    class Meanwhile(MemoryDisk):
        def flush(self) -> None:
            latch.changed()

    latch = FlushLatch(Meanwhile())
    latch.changed()
    latch.flush()
    assert latch.unsettled


def test_none_is_due_that_would_fail_for_sure() -> None:
    latch = FlushLatch(FailingDisk(lambda name: errno.EIO))
    with pytest.raises(OSError):
        latch.flush()
    latch.changed()
    assert not latch.unsettled


def test_a_flush_that_fails_takes_back_what_had_succeeded_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was refused stays refused, and what was not done yet is done when the run goes on."""
    monkeypatch.setattr(limits, "ZEROES_PIECE_BYTES", SECTOR_BYTES)
    disk = FailingDisk(lambda name: errno.EIO if name == "flush" else None)
    executor = Executor(disk, FlushLatch(disk), b"", lambda: True)
    requests = [
        request(T_OUT, bytes(SECTOR_BYTES)),
        request(T_DISCARD, pack_segments((0, 1, 0xFE))),
        request(T_WRITE_ZEROES, pack_segments((0, 2, 0))),
    ]
    ends = iter([False, False, True])
    executor.execute(requests, lambda: next(ends))
    assert [one.status for one in requests] == [S_IOERR, S_UNSUPP, PENDING]


def request(type_: int, data: bytes) -> Request:
    made = Request(0, type_, 0, [memoryview(data)], len(data), memoryview(bytearray(1)))
    judge(made, size=1 << 20, read_only=False, features=F_DISCARD | F_WRITE_ZEROES)
    return made
