"""`Portal`: a plugin's own async objects, used from threads."""

import threading
from contextlib import asynccontextmanager

import pytest
import trio

from microvm import GuestError
from microvm.sync import Portal, TooSlowError, fail_after, move_on_after
from microvm.sync._portal import LoopIterator


class Counter:
    """As a plugin would write it for trio's users."""

    def __init__(self, machine, first=0):
        self.machine = machine
        self.thread = threading.current_thread().name
        self.now = first
        self.left_by = "not left"
        self.cancelled = 0
        self._more, self._numbers = trio.open_memory_channel(10)

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, traceback):
        self.left_by = kind
        self._more.close()

    async def add(self, number):
        if number < 0:
            raise GuestError("It only counts up.")
        await trio.lowlevel.checkpoint()
        self.now += number
        self._more.send_nowait(self.now)
        return self.now

    async def wait_for_ever(self):
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled += 1

    def numbers(self):
        return self._numbers

    @asynccontextmanager
    async def locked(self, word):
        async with trio.open_nursery() as nursery:
            yield word.upper()
            nursery.cancel_scope.cancel()


@pytest.fixture
def portal(rig):
    with rig.machine() as machine:
        yield Portal(machine)


@pytest.fixture
def counter(portal):
    return portal.read(Counter, portal.machine, 10)


def test_things_are_made_and_called_on_the_machines_loop(portal, counter):
    assert counter.thread == "microvm-sync"
    assert portal.call(counter.add, 5) == 15
    assert portal.read(lambda: counter.now) == 15


def test_an_error_comes_out_as_it_is(portal, counter):
    with pytest.raises(GuestError, match="only counts up"):
        portal.call(counter.add, -1)
    with pytest.raises(ZeroDivisionError):
        portal.read(lambda: 1 // 0)


def test_deadlines_cancel_what_is_waited_for(portal, counter):
    with pytest.raises(TooSlowError), fail_after(0.01):
        portal.call(counter.wait_for_ever)
    assert counter.cancelled == 1


def test_a_block_is_entered_and_left_there_and_hears_of_errors(portal, counter):
    with portal.hold(lambda: counter) as entered:
        assert entered is counter
        assert counter.left_by == "not left"
    assert counter.left_by is None
    other = portal.read(Counter, portal.machine)
    with pytest.raises(KeyError, match="mine"), portal.hold(lambda: other):
        raise KeyError("mine")
    assert other.left_by is not None
    with portal.hold(counter.locked, "word") as word:
        assert word == "WORD"


def test_items_come_in_order_and_end(portal, counter):
    numbers = portal.iterate(portal.read(counter.numbers))
    with portal.hold(lambda: counter):
        portal.call(counter.add, 1)
        portal.call(counter.add, 1)
        assert next(numbers) == 11
    assert list(numbers) == [12]
    assert list(numbers) == []


def test_a_wait_for_an_item_that_is_cut_short_loses_none(portal, counter):
    numbers = portal.iterate(portal.read(counter.numbers))
    with move_on_after(0.01) as bound:
        next(numbers)
    assert bound.cancelled_caught
    portal.call(counter.add, 1)
    assert next(numbers) == 11


class InterruptedLoop:
    """Ctrl-C comes when the loop has just done what it was to do."""

    def __init__(self, *items):
        self.items = list(items)
        self.interrupts = 1

    def call(self, work, undo):
        item = self.items.pop(0)
        if self.interrupts:
            self.interrupts -= 1
            undo(item)
            raise KeyboardInterrupt
        return item


class Nothing:
    async def __anext__(self): ...


def test_an_item_that_came_with_ctrl_c_is_the_next():
    numbers = LoopIterator(InterruptedLoop(1, 2), Nothing())
    with pytest.raises(KeyboardInterrupt):
        next(numbers)
    assert [next(numbers), next(numbers)] == [1, 2]


def test_a_stream_is_a_blocking_socket(rig, portal):
    listener = portal.read(rig.channels.guest.listen, 7000)
    with portal.open_socket(portal.machine.connect, 7000) as sock:
        stream = portal.call(listener.accept)
        portal.call(stream.send_all, b"hello")
        assert sock.recv(5) == b"hello"
        portal.call(stream.aclose)
        assert sock.recv(5) == b""
    portal.call(listener.aclose)


def test_there_is_none_of_a_machine_that_is_not_started(rig):
    with pytest.raises(RuntimeError, match="with Machine"):
        Portal(rig.machine())


def test_it_refuses_what_would_wait_for_itself(portal):
    with pytest.raises(RuntimeError, match="callbacks"):
        portal.read(lambda: portal.read(int))
