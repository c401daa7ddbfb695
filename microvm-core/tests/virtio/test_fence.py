"""The fence: row 31 of the hazard catalogue, where a memory model can be seen at work.

Each side stores its word and loads the other's ("store buffering"). That both miss the other's
is what a store buffer does to a queue's two sides that go to sleep, and what `fence` is there
to prevent.
"""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from microvm.virtio.fence import TOTAL_STORE_ORDER, fence

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memfd is Linux's"),
    pytest.mark.skipif(not TOTAL_STORE_ORDER, reason="The fence's argument is about x86-64."),
]

ROUND, MINE, THEIRS, SAW, DONE = 0, 256, 512, 768, 1024
"""Where the words are; see store_buffer.c."""
BATCH = 0xFFFE
PATIENCE_S = 20
SPINS = 100_000_000
"""Some seconds: a machine that has other things to do may stop the other side in a round."""


@contextmanager
def other_side(program: Path, cpu: int) -> Iterator[memoryview]:
    """The words, with the other process at them."""
    memfd = os.memfd_create("words")
    try:
        os.ftruncate(memfd, 4096)
        words = memoryview(mmap.mmap(memfd, 4096)).cast("H")
        with subprocess.Popen([program, str(memfd)], pass_fds=(memfd,)) as process:
            os.sched_setaffinity(process.pid, {cpu})
            try:
                yield words
            finally:
                words[ROUND] = 0xFFFF
    finally:
        os.close(memfd)


def fenced(words: memoryview, turn: int) -> int:
    words[MINE] = turn
    fence()
    return words[THEIRS]


def unfenced(words: memoryview, turn: int) -> int:
    words[MINE] = turn
    return words[THEIRS]


def both_missed(words: memoryview, step: Callable[[memoryview, int], int]) -> tuple[int, int]:
    """How often neither saw the other's word, and how often both did."""
    neither = both = 0
    for turn in range(1, BATCH + 1):
        words[ROUND] = turn
        for _ in range(turn % 8):
            pass
        saw = step(words, turn) == turn
        left = SPINS
        while words[DONE] != turn:
            left -= 1
            assert left, "The other side is gone."
        if saw and words[SAW] == turn:
            both += 1
        elif not saw and words[SAW] != turn:
            neither += 1
    words[MINE] = words[THEIRS] = 0
    return neither, both


def test_31_a_store_before_the_fence_is_seen_by_whoever_stored_what_is_not_seen_after_it(
    compiled: Callable[[str], Path], other_cpu: int
) -> None:
    met = 0
    with other_side(compiled("store_buffer"), other_cpu) as words:
        for _ in range(3):
            neither, both = both_missed(words, fenced)
            assert neither == 0
            met += both
    assert met > 100, "The two sides have not met."


def test_31_without_the_fence_both_sides_miss_the_other(
    compiled: Callable[[str], Path], other_cpu: int
) -> None:
    """That the test above can fail. Measured: 1 to 140 of 65 534 rounds."""
    begin = time.monotonic()
    with other_side(compiled("store_buffer"), other_cpu) as words:
        while time.monotonic() < begin + PATIENCE_S:
            if both_missed(words, unfenced)[0]:
                return
    pytest.skip("These two CPUs do not show their store buffers (are they one?).")
