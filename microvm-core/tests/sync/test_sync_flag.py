"""A `Flag` between two threads, one of which is interrupted wherever a signal may strike."""

import signal
import threading

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

    before = signal.signal(signal.SIGALRM, strike)
    try:
        for number in range(300):
            flag = Flag()
            setter = threading.Timer(0.0005, flag.set)
            setter.start()
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 0.000005 * (number + 1))
                while armed:
                    flag.wait(BOUND_S)
            except Struck:
                pass
            assert flag.wait(BOUND_S)
            setter.join(BOUND_S)
            assert not setter.is_alive()
    finally:
        signal.signal(signal.SIGALRM, before)
