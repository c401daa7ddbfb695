"""How long a device may hold the loop, and how much it may take, whatever its driver does.

A guest must not hang its host for a second or fill its memory: these are the two numbers. CPU time
is counted, and of the loop's thread alone: a host that is busy with other things makes no device
fail, and a device that waits in a blocking call is not found here.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

MAX_STEP_S: Final = 1.0
"""Seconds of CPU time between two checkpoints of a task."""
MAX_GROWTH_BYTES: Final = 32 << 20
"""What Python may hold at once more than before; guest RAM is mapped and does not count."""


class Steps(trio.abc.Instrument):
    """Finds the task step that took the most CPU time."""

    def __init__(self) -> None:
        self._began = 0.0
        self._longest_s = 0.0
        self._whose = ""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """As `Instrument.before_task_step`."""
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """As `Instrument.after_task_step`."""
        spent = time.thread_time() - self._began
        if spent > self._longest_s:
            self._longest_s, self._whose = spent, task.name

    def check(self) -> None:
        """See that no step was too long. Here, since what an instrument raises is only logged.

        Raises:
            AssertionError: one was.
        """
        assert self._longest_s <= MAX_STEP_S, (
            f"{self._whose} held the loop for {self._longest_s:.1f} s of CPU time without a "
            f"checkpoint. Whatever a driver asks for, {MAX_STEP_S:g} s is the most."
        )


@contextmanager
def bounded_growth(max_bytes: int | None) -> Iterator[None]:
    """While the block lasts, Python's memory may grow by so much and no more; None is any amount.

    Everything takes four times as long within.

    Raises:
        AssertionError: it has grown by more, if only for a moment.
    """
    if max_bytes is None:
        yield
        return
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not was_tracing:
            tracemalloc.stop()
    assert peak - before <= max_bytes, (
        f"Memory grew by {(peak - before) / (1 << 20):.1f} MiB. Whatever a driver asks for, "
        f"{max_bytes >> 20} MiB is the most."
    )
