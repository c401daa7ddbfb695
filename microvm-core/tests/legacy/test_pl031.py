"""The PL031's registers, one rule each, and the boot timer; row 16 of the hazard catalogue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.abc import IrqLine
from microvm.bus import Bus
from microvm.legacy.boot_timer import MAX_MARKS, READY, BootTimer
from microvm.legacy.pl031 import (
    REGISTER_BYTES,
    RTCCR,
    RTCDR,
    RTCICR,
    RTCIMSC,
    RTCLR,
    RTCMIS,
    RTCMR,
    RTCRIS,
    Pl031,
)

START = 1_700_000_000


class Edges(IrqLine):
    def __init__(self) -> None:
        self.count = 0

    def trigger(self) -> None:
        self.count += 1


class Clock:
    """A PL031 on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = float(START)
        self.irq = Edges()
        self.rtc = Pl031(self.irq, lambda: self.now)

    def __getitem__(self, offset: int) -> int:
        return self.rtc.read(offset, 4)

    def __setitem__(self, offset: int, value: int) -> None:
        self.rtc.write(offset, 4, value)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (RTCDR, START),
        (RTCMR, 0),
        (RTCLR, 0),
        (RTCCR, 1),
        (RTCIMSC, 0),
        (RTCRIS, 0),
        (RTCMIS, 0),
        (RTCICR, 0),
        (0x100, 0),
    ],
)
def test_what_each_register_is_after_reset(clock: Clock, offset: int, value: int) -> None:
    assert clock[offset] == value


def test_it_says_what_it_is(clock: Clock) -> None:
    identity = [clock[offset] for offset in range(0xFE0, 0x1000, 4)]
    assert bytes(identity) == bytes.fromhex("311014000df005b1")


def test_it_counts_the_hosts_seconds_from_what_it_was_set_to(clock: Clock) -> None:
    clock.now += 5.5
    assert clock[RTCDR] == START + 5
    clock[RTCLR] = 1000
    assert (clock[RTCDR], clock[RTCLR]) == (1000, 1000)
    clock.now += 7
    assert clock[RTCDR] == 1007


def test_it_wraps_at_32_bits_and_can_not_be_stopped(clock: Clock) -> None:
    clock[RTCLR] = 0xFFFF_FFFF
    clock[RTCCR] = 0
    clock.now += 2
    assert (clock[RTCDR], clock[RTCCR]) == (1, 1)


def test_the_alarm_interrupts_when_its_time_has_come_and_once(clock: Clock) -> None:
    clock[RTCIMSC] = 1
    clock[RTCMR] = START + 10
    clock.now += 9
    clock.rtc.tick()
    assert (clock.irq.count, clock[RTCRIS]) == (0, 0)
    clock.now += 5
    clock.rtc.tick()
    clock.rtc.tick()
    assert (clock.irq.count, clock[RTCRIS], clock[RTCMIS]) == (1, 1, 1)
    clock[RTCICR] = 1
    assert (clock[RTCRIS], clock.irq.count) == (0, 1)


def test_a_masked_alarm_is_pending_and_interrupts_when_it_is_enabled(clock: Clock) -> None:
    clock[RTCMR] = START + 1
    clock.now += 1
    assert (clock[RTCRIS], clock[RTCMIS], clock.irq.count) == (1, 0, 0)
    clock[RTCIMSC] = 0xFF
    assert (clock[RTCMIS], clock.irq.count, clock[RTCIMSC]) == (1, 1, 1)


def test_setting_the_time_beyond_the_alarm_does_not_ring_it(clock: Clock) -> None:
    clock[RTCMR] = START + 10
    clock[RTCLR] = START + 100
    assert clock[RTCRIS] == 0


def test_an_alarm_for_now_rings_now(clock: Clock) -> None:
    clock[RTCMR] = START
    assert clock[RTCRIS] == 1


def test_a_host_clock_that_is_set_back_rings_nothing(clock: Clock) -> None:
    clock[RTCMR] = START - 5
    clock.now -= 10
    assert clock[RTCDR] == START - 10
    assert clock[RTCRIS] == 0


@given(
    st.lists(
        st.tuples(
            st.integers(0, REGISTER_BYTES + 8),
            st.sampled_from((1, 2, 4, 8)),
            st.one_of(st.none(), st.integers(0, 2**64 - 1)),
            st.floats(-1e9, 1e9),
        ),
        max_size=40,
    )
)
def test_row_16_whatever_is_done_to_it_fits(steps: list) -> None:
    """Row 16: any width, any offset, any time."""
    clock = Clock()
    bus = Bus("memory")
    bus.insert(0, REGISTER_BYTES, clock.rtc)
    for offset, size, value, step in steps:
        clock.now += step
        if value is None:
            assert 0 <= bus.read(offset, size) < 1 << 8 * size
        else:
            bus.write(offset, size, value)


# --- the boot timer ----------------------------------------------------------------------------


def test_a_byte_at_the_beginning_is_told_and_nothing_else() -> None:
    marks: list[int] = []
    timer = BootTimer(marks.append)
    timer.write(0, 1, READY)
    timer.write(1, 1, READY)
    timer.write(0, 8, 0x1_0007)
    assert marks == [READY, 7]
    assert timer.read(0, 8) == 0


def test_row_16_a_guest_that_marks_without_end_is_told_of_a_few_times() -> None:
    """Row 16."""
    marks: list[int] = []
    timer = BootTimer(marks.append)
    for _ in range(10_000):
        timer.write(0, 1, READY)
    assert len(marks) == MAX_MARKS
