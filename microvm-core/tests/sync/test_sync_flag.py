"""A `Flag` between two threads, one of which is interrupted wherever a signal may strike."""

import signal
import threading
from contextlib import suppress

from microvm.sync._flag import Flag

BOUND_S = 30


class Struck(Exception):
    """What a signal handler raised."""


def test_it_is_waited_for_and_stays_set():
    flag = Flag()
    assert not flag.wait(0)
    assert not flag.is_set()
    flag.set()
    flag.set()
    assert flag.is_set()
    assert flag.wait(0)
    assert flag.wait(0)


def test_an_interrupted_wait_neither_holds_up_the_setter_nor_loses_the_flag():
    armed = False

    def strike(*_):
        nonlocal armed
        if armed:
            armed = False
            raise Struck

    def wait_until_struck(flag: Flag, seconds: float) -> None:
        # A frame of its own: with the loop right below `try`, CPython 3.13 was seen to let the
        # exception by at the loop's condition.
        nonlocal armed
        armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while armed:
            flag.wait(BOUND_S)

    before = signal.signal(signal.SIGALRM, strike)
    try:
        for number in range(300):
            flag = Flag()
            setter = threading.Timer(0.0005, flag.set)
            setter.start()
            with suppress(Struck):
                wait_until_struck(flag, 0.000005 * (number + 1))
            assert flag.wait(BOUND_S)
            setter.join(BOUND_S)
            assert not setter.is_alive()
    finally:
        signal.signal(signal.SIGALRM, before)
