"""The power fails at any moment: what a guest was told is stable is there (hardening.md 4.3).

The same guest and the same oracle run on devices that are right and on devices that are wrong in
one of the ways that shipped elsewhere, where the oracle must complain.
"""

import errno
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.config import DriveConfig
from microvm.virtio.features import RING_FEATURES
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.disk import FlushLatch
from microvm_devices.blk.durability import WriteMode
from microvm_devices.blk.layout import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_MQ,
    F_WRITE_ZEROES,
)
from microvm_devices.blk.testing import Ledger, RecordingDisk, broken_promises
from microvm_devices.blk.testing.crash import Asked, Entry, Flushed, Lost, Promised, Written

from .journal_guest import QUEUES, Action, JournalGuest

ALWAYS = RING_FEATURES | F_MQ | F_DISCARD | F_WRITE_ZEROES
NEGOTIATED = {
    "none": ALWAYS,
    "flush": ALWAYS | F_FLUSH,
    "wce": ALWAYS | F_CONFIG_WCE,
    "flush+wce": ALWAYS | F_FLUSH | F_CONFIG_WCE,
}
SECTORS = 12

MakeDisk = Callable[[], RecordingDisk]
MakeMode = Callable[[], WriteMode]
MakeLatch = Callable[[RecordingDisk], FlushLatch]


class Device(BlkDevice):
    """With a latch of the test's."""

    def __init__(self, disk: RecordingDisk, make_latch: MakeLatch) -> None:
        super().__init__(DriveConfig(path="/a/disk", queues=QUEUES), disk.opener())
        self.made = make_latch(disk)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with super().lifespan():
            self._latch = self.made
            yield


def log_of(
    actions: Sequence[Action],
    features: int,
    make_disk: MakeDisk = RecordingDisk,
    make_mode: MakeMode | None = None,
    make_latch: MakeLatch = FlushLatch,
) -> list[Entry]:
    disk = make_disk()
    device = Device(disk, make_latch)
    if make_mode is not None:
        device._mode = make_mode()
    trio.run(JournalGuest(device, disk, features).live, actions)
    return disk.log


def any_action() -> st.SearchStrategy[Action]:
    ranges = ["write", "write", "write", "write", "zero", "discard", "flush", "flush", "settle"]
    names = st.sampled_from([*ranges, "cache_mode", "reset", "pause"])
    return st.tuples(names, st.integers(0, SECTORS - 1), st.integers(1, 4))


@given(st.lists(any_action(), min_size=1, max_size=60), st.sampled_from(sorted(NEGOTIATED)))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_guest_was_told_is_stable_is_there_after_a_power_cut(
    actions: list[Action], negotiated: str
) -> None:
    log = log_of([*actions, ("settle", 0, 0)], NEGOTIATED[negotiated])
    assert broken_promises(log) == []


# --- devices that are wrong: the oracle must say so ----------------------------------------------


class FlushesNothing(RecordingDisk):
    """fdatasync replaced by pass."""

    def flush(self) -> None:
        self.before()


class AnswersBeforeItWrites(RecordingDisk):
    """The completion is posted, and the write reaches the file after the operation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[tuple[bytes, int]] = []

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        self.catch_up()
        self.late.append((b"".join(views), offset))

    def flush(self) -> None:
        super().flush()
        self.catch_up()

    def catch_up(self) -> None:
        for data, offset in self.late:
            super().write([memoryview(data)], offset, len(data))
        self.late.clear()


class TearsSectors(RecordingDisk):
    """Half of a sector in one call, and half in the next."""

    def write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        data = b"".join(views)
        half = data[:256] + bytes(self.data[offset + 256 : offset + length])
        super().write([memoryview(half)], offset, length)
        super().write([memoryview(data)], offset, length)


class ForgetsDriversWithoutFlush(WriteMode):
    """Case (1) of hardening.md 4.1 ignored: nobody can flush, and nobody does."""

    @property
    def through(self) -> bool:
        features = self._features or 0
        return bool(features & F_CONFIG_WCE) and not self.writeback


class IgnoresTheField(WriteMode):
    """CONFIG_WCE is offered, and `writeback` changes nothing."""

    @property
    def through(self) -> bool:
        return not (self._features or 0) & (F_FLUSH | F_CONFIG_WCE)


class ForgetsTheModeInAPause(WriteMode):
    def end(self) -> None:
        super().end()
        self._paused = 1


MUTANTS: dict[str, tuple[str, MakeDisk, MakeMode | None]] = {
    "no fdatasync for flushes": ("flush", FlushesNothing, None),
    "no fdatasync for flushes, with a field": ("flush+wce", FlushesNothing, None),
    "no fdatasync in write-through": ("none", FlushesNothing, None),
    "answer before write": ("flush", AnswersBeforeItWrites, None),
    "answer before write, write-through": ("none", AnswersBeforeItWrites, None),
    "torn sectors": ("flush", TearsSectors, None),
    "case 1": ("none", RecordingDisk, lambda: ForgetsDriversWithoutFlush(configured=True)),
    "field ignored": ("flush+wce", RecordingDisk, lambda: IgnoresTheField(configured=True)),
    "field ignored, no flush": ("wce", RecordingDisk, lambda: IgnoresTheField(configured=True)),
    "field lost in a pause": (
        "flush+wce",
        RecordingDisk,
        lambda: ForgetsTheModeInAPause(configured=True),
    ),
}


class LosesOnce(RecordingDisk):
    """One write-back fails; as on Linux, one flush hears of it and what was lost stays so."""

    FAILS_AT = 3

    def make_stable(self) -> None:
        super().make_stable()
        if self.flushes == self.FAILS_AT:
            raise OSError(errno.EIO, "lost")


class LatchOfEachQueue(FlushLatch):
    """Each queue, which has a thread of its own, knows of its own failures alone."""

    def __init__(self, disk: RecordingDisk) -> None:
        super().__init__(disk)
        self.latches: dict[int, FlushLatch] = {}

    def flush(self) -> None:
        self.latches.setdefault(threading.get_ident(), FlushLatch(self._disk)).flush()


@pytest.mark.parametrize(
    ("make_latch", "is_right"), [(FlushLatch, True), (LatchOfEachQueue, False)]
)
def test_a_flush_that_failed_on_one_queue_is_known_to_the_other(
    make_latch: MakeLatch, is_right: bool
) -> None:
    failures = 0
    broken: list[str] = []
    for seed in range(30):
        log = log_of(workload(seed), NEGOTIATED["flush"], LosesOnce, make_latch=make_latch)
        failures += sum(isinstance(entry, Lost) for entry in log)
        broken += broken_promises(log)
    assert failures > 10
    assert is_right == (not broken)


def workload(seed: int) -> list[Action]:
    rng = random.Random(seed)
    names = ["write"] * 6 + ["zero", "discard", "flush", "flush", "settle", "settle"]
    names += ["cache_mode", "cache_mode", "pause", "reset"]
    return [(rng.choice(names), rng.randrange(SECTORS), rng.randint(1, 4)) for _ in range(80)]


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_the_oracle_finds_a_device_that_is_wrong(mutant: str) -> None:
    negotiated, make_disk, make_mode = MUTANTS[mutant]
    features = NEGOTIATED[negotiated]
    assert any(
        broken_promises(log_of(workload(seed), features, make_disk, make_mode))
        for seed in range(200)
    )


@pytest.mark.parametrize("negotiated", sorted(NEGOTIATED))
def test_and_nothing_in_a_device_that_is_right(negotiated: str) -> None:
    promises = 0
    for seed in range(20):
        log = log_of(workload(seed), NEGOTIATED[negotiated])
        assert broken_promises(log) == []
        promises += sum(isinstance(entry, Promised) and bool(entry.versions) for entry in log)
    assert promises > 100


# --- the oracle itself ---------------------------------------------------------------------------


def sector(text: bytes) -> bytes:
    return text.ljust(512, b".")


OLD, NEW = sector(b"old"), sector(b"new")
ASK_OLD, ASK_NEW, ASK_DISCARD = Asked({1: OLD}), Asked({1: NEW}), Asked({1: None})
PUT_OLD, PUT_NEW, DISCARD = Written({1: OLD}), Written({1: NEW}), Written({1: None})
FLUSH, FIRST, SECOND = Flushed(), Promised({1: 1}), Promised({1: 2})


@pytest.mark.parametrize(
    ("log", "is_broken"),
    [
        ([ASK_OLD, PUT_OLD, FLUSH, FIRST], False),
        ([ASK_OLD, PUT_OLD, FIRST], True),
        ([ASK_OLD, FLUSH, FIRST, PUT_OLD], True),
        ([ASK_OLD, FIRST], True),
        ([ASK_OLD, PUT_NEW], True),
        ([PUT_NEW], True),
        # What is under way may be there or not; what was there before it is there for sure.
        ([ASK_OLD, PUT_OLD, FLUSH, FIRST, ASK_NEW, PUT_NEW], False),
        ([ASK_OLD, PUT_OLD, FLUSH, ASK_NEW, PUT_NEW, SECOND], True),
        ([ASK_OLD, PUT_OLD, FLUSH, FIRST, ASK_NEW, PUT_NEW, FLUSH, SECOND], False),
        # Of what was discarded nothing is expected, until it is written again.
        ([ASK_OLD, PUT_OLD, ASK_DISCARD, DISCARD, FLUSH, SECOND], False),
        ([ASK_DISCARD, DISCARD, ASK_NEW, PUT_NEW, SECOND], True),
        ([ASK_DISCARD, DISCARD, ASK_NEW, PUT_NEW, FLUSH, SECOND], False),
        # A flush is about what was written when it began.
        ([ASK_OLD, PUT_OLD, Flushed(began=2), FIRST], False),
        ([ASK_OLD, PUT_OLD, Flushed(began=1), FIRST], True),
        ([ASK_OLD, PUT_OLD, ASK_NEW, PUT_NEW, Flushed(began=3), FIRST], False),
        ([ASK_OLD, PUT_OLD, ASK_NEW, PUT_NEW, Flushed(began=3), SECOND], True),
        # What a flush has lost no other finds; what is written anew it does.
        ([ASK_OLD, PUT_OLD, Lost(began=2), FLUSH, FIRST], True),
        ([ASK_OLD, PUT_OLD, Lost(began=1), FLUSH, FIRST], False),
        ([ASK_OLD, PUT_OLD, FLUSH, FIRST, Lost(began=3), ASK_NEW, PUT_NEW, FLUSH, SECOND], False),
        ([ASK_OLD, PUT_OLD, Lost(began=2), ASK_NEW, PUT_NEW, FLUSH, SECOND], False),
    ],
)
def test_what_may_be_found_after_a_crash(log: list[Entry], is_broken: bool) -> None:
    assert bool(broken_promises(log)) == is_broken


def test_a_write_during_a_flush_is_not_stable_by_it() -> None:
    class Meanwhile(RecordingDisk):
        """Another queue's thread writes while the flush is under way."""

        def make_stable(self) -> None:
            self.write([memoryview(OLD)], 512, 512)

    disk = Meanwhile()
    ledger = Ledger(disk)
    versions = ledger.ask({1: OLD})
    disk.flush()
    ledger.promised(versions)
    assert broken_promises(disk.log)
    RecordingDisk.make_stable(disk)
    disk.note(Flushed(began=len(disk.log)))
    ledger.promised(versions)
    assert len(broken_promises(disk.log)) == 1
