"""What readings of a host's clocks say has happened to it."""

import os
from math import isclose

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from microvm.host_clocks import ClockJump, ClockReading, JumpDetector, JumpWatch, SystemClocks
from microvm.host_clocks.jumps import SMALLEST_S
from microvm.host_clocks.timer import open_jump_timer
from microvm.testing.host_clocks import SimulatedClocks

FIRST = ClockReading(running=100.0, boot=150.0, wall=1.7e9)


def after(reading, *, awake=0.0, asleep=0.0, set_by=0.0):
    return ClockReading(
        running=reading.running + awake,
        boot=reading.boot + awake + asleep,
        wall=reading.wall + awake + asleep + set_by,
    )


@pytest.mark.parametrize("awake", [0.0, 1e-6, 1.0, 1e6])
def test_time_that_only_passes_is_no_jump(awake):
    assert JumpDetector(FIRST).observe(after(FIRST, awake=awake)) is None


@pytest.mark.parametrize(
    ("asleep", "set_by"), [(3600.0, 0.0), (0.1, 0.0), (0.0, 5.0), (0.0, -5.0), (60.0, -1.0)]
)
def test_sleep_and_a_time_that_was_set_are_told_apart(asleep, set_by):
    jump = JumpDetector(FIRST).observe(after(FIRST, awake=7.0, asleep=asleep, set_by=set_by))
    assert isclose(jump.slept_s, asleep, abs_tol=1e-6)
    assert isclose(jump.set_by_s, set_by, abs_tol=1e-6)


def test_a_jump_is_told_once():
    detector = JumpDetector(FIRST)
    slept = after(FIRST, asleep=9.0)
    assert detector.observe(slept) is not None
    assert detector.observe(after(slept, awake=9.0)) is None


def test_small_ones_add_up_to_one_worth_telling_of():
    detector, reading = JumpDetector(FIRST), FIRST
    jumps = []
    for _ in range(5):
        reading = after(reading, awake=1.0, set_by=0.3 * SMALLEST_S)
        jumps.append(detector.observe(reading))
    assert [jump is not None for jump in jumps] == [False, False, False, True, False]


@pytest.mark.parametrize("asleep", [0.0, 3600.0])
@pytest.mark.parametrize("set_by", [0.0, -7.0])
def test_a_guest_that_was_paused_stood_still_for_all_of_it_asleep_or_not(asleep, set_by):
    jump = ClockJump.of_pause(FIRST, after(FIRST, awake=2.0, asleep=asleep, set_by=set_by))
    assert isclose(jump.slept_s, 2.0 + asleep, abs_tol=1e-6)
    assert isclose(jump.set_by_s, set_by, abs_tol=1e-6)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.one_of(st.just(0.0), st.floats(0.2, 1e5))), max_size=20
    )
)
def test_no_sleep_is_lost_however_the_looks_fall(stretches):
    detector, reading, found = JumpDetector(FIRST), FIRST, 0.0
    for awake, asleep in stretches:
        reading = after(reading, awake=awake, asleep=asleep)
        jump = detector.observe(reading)
        found += jump.slept_s if jump is not None else 0.0
    assert isclose(found, sum(asleep for _, asleep in stretches), abs_tol=0.01)


async def test_who_watches_is_told_of_each_sleep_and_of_nothing_else():
    clocks = SimulatedClocks()
    watch = JumpWatch(clocks)
    clocks.sleep(0)
    with trio.move_on_after(0.05) as scope:
        await watch.next()
    assert scope.cancelled_caught
    for seconds in (3600, 1):
        clocks.sleep(seconds)
        assert isclose((await watch.next()).slept_s, seconds, abs_tol=0.01)
    clocks.set_wall(-30)
    assert isclose((await watch.next()).set_by_s, -30, abs_tol=0.04)


async def test_this_systems_clocks_run_and_nobody_is_woken_for_them():
    clocks = SystemClocks()
    try:
        before = clocks.read()
        with trio.move_on_after(0.05) as scope:
            await JumpWatch(clocks).next()
        assert scope.cancelled_caught
        passed = clocks.read().running - before.running
        assert isclose(clocks.read().boot - before.boot, passed, abs_tol=0.04)
    finally:
        clocks.close()
        clocks.close()


def test_linux_has_a_timer_that_tells_and_it_is_quiet_until_then():
    timer = open_jump_timer()
    assert timer is not None
    with pytest.raises(BlockingIOError):
        os.read(timer, 8)
    os.close(timer)
