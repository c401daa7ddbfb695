"""`fail_after` and `move_on_after`: what they cut short, and whose time was up."""

import asyncio
import threading

import pytest

from microvm import MicrovmError
from microvm.sync import TooSlowError, fail_after, move_on_after

SOON = 0.05
LONG = 600.0


def test_a_call_that_is_too_slow_is_cancelled_and_told(rig):
    with rig.machine() as machine:
        with pytest.raises(TooSlowError, match=r"longer than the 0\.05 s"), fail_after(SOON):
            machine.run(["sleep"])
        assert rig.guest.cancelled == ["sleep"]
        assert machine.run(["echo", "still"]).stdout == b"still"


def test_it_is_a_timeout_as_python_knows_them(rig):
    with rig.machine() as machine, pytest.raises(TimeoutError) as caught, fail_after(SOON):
        machine.run(["sleep"])
    assert isinstance(caught.value, MicrovmError)
    assert caught.value.code == "sync.too_slow"


def test_moving_on_goes_on_behind_the_block(rig):
    with rig.machine() as machine:
        with move_on_after(SOON) as deadline:
            machine.run(["sleep"])
            raise AssertionError
        assert deadline.cancelled_caught


def test_calls_that_are_quick_enough_know_nothing_of_it(rig):
    with rig.machine() as machine, fail_after(LONG) as deadline, move_on_after(LONG):
        assert machine.run(["echo", "x"]).stdout == b"x"
    assert not deadline.cancelled_caught


def test_the_block_counts_and_not_the_call(rig):
    with rig.machine() as machine:
        machine.wait_ready()
        with move_on_after(0) as deadline:
            machine.run(["sleep"])
        assert deadline.cancelled_caught


@pytest.mark.parametrize(("outer", "inner"), [(SOON, LONG), (LONG, SOON)])
def test_of_two_blocks_the_one_whose_time_is_up_is_left(rig, outer, inner):
    with rig.machine() as machine:
        reached = False
        with move_on_after(outer) as first:
            with move_on_after(inner) as second:
                machine.run(["sleep"])
            reached = True
        assert reached == (inner is SOON)
        assert (first.cancelled_caught, second.cancelled_caught) == (outer is SOON, inner is SOON)


def test_the_machine_is_left_whatever_the_time(rig):
    with pytest.raises(TooSlowError), fail_after(SOON), rig.machine() as machine:
        machine.run(["sleep"])
    assert rig.platform.live == 0


def test_entering_a_machine_or_a_command_is_bounded_too_but_not_their_stay(rig):
    with rig.machine() as machine, fail_after(SOON) as deadline:
        with machine.spawn(["cat"]) as process:
            pause = threading.Event()
            pause.wait(SOON * 2)
        assert rig.guest.processes
        assert process is not None
    assert not deadline.cancelled_caught
    with pytest.raises(TooSlowError), fail_after(0), rig.machine():
        raise AssertionError
    assert rig.platform.live == 0


def test_closing_takes_the_time_that_it_takes(rig):
    with rig.machine() as machine:
        machine.wait_ready()
        forward, listener = machine.forward(guest_port=80), machine.listen(9000)
        with fail_after(0), forward, listener:
            pass
        machine.listen(9000).close()


def test_another_thread_has_its_own(rig):
    with rig.machine() as machine, fail_after(0):
        said = []
        other = threading.Thread(target=lambda: said.append(machine.run(["echo", "x"]).stdout))
        other.start()
        other.join(30)
        assert said == [b"x"]


def test_asyncio_takes_it_along(rig):
    async def program(machine):
        with fail_after(SOON):
            await asyncio.to_thread(machine.run, ["sleep"])

    with rig.machine() as machine, pytest.raises(TooSlowError):
        asyncio.run(program(machine))


def test_a_deadline_is_entered_once():
    deadline = fail_after(1)
    with deadline, pytest.raises(RuntimeError, match="once"), deadline:
        pass
