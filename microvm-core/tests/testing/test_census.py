"""What grows is seen, whatever it is."""

import mmap
import os
import threading
from contextlib import ExitStack, closing

import pytest

from microvm.testing.census import GROWTH_KIB, nothing_grows


def test_a_block_that_leaves_nothing_passes() -> None:
    with nothing_grows():
        for _ in range(1000):
            os.close(os.open(os.devnull, os.O_RDONLY))


def leaks_a_descriptor(stack: ExitStack) -> None:
    stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def leaks_a_thread(stack: ExitStack) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    stack.callback(thread.join)
    stack.callback(end.set)


def leaks_mappings(stack: ExitStack) -> None:
    for _ in range(10):
        # Neighbours of one kind are one mapping; these are not.
        stack.enter_context(closing(mmap.mmap(-1, 4096, prot=mmap.PROT_READ)))
        stack.enter_context(closing(mmap.mmap(-1, 4096)))


def leaks_memory(stack: ExitStack) -> None:
    memory = stack.enter_context(closing(mmap.mmap(-1, GROWTH_KIB * 2048)))
    for at in range(0, len(memory), 4096):
        memory[at] = 1


@pytest.mark.parametrize(
    ("leak", "says"),
    [
        (leaks_a_descriptor, "/dev/null"),
        (leaks_a_thread, "Thread-"),
        (leaks_mappings, "mappings more"),
        (leaks_memory, "KiB more"),
    ],
)
def test_what_a_block_leaves_is_told(leak, says: str) -> None:
    with ExitStack() as stack, pytest.raises(AssertionError, match=says), nothing_grows():
        leak(stack)
