"""What a process holds, counted: a test compares before and after."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

GROWTH_KIB: Final = 2048
ALLOCATOR_MAPS: Final = 2
"""Mappings that an allocator may add for itself."""


@attrs.frozen(kw_only=True)
class Census:
    """Open descriptors by what they refer to, threads by name, child processes. Linux only.

    Threads kept by trio for reuse are left out: they end by themselves when idle for 10 s.
    """

    descriptors: tuple[str, ...]
    threads: tuple[str, ...]
    children: tuple[int, ...]

    @classmethod
    def take(cls) -> Census:
        """Count now."""
        return cls(
            descriptors=tuple(sorted(cls._descriptors())),
            threads=tuple(
                sorted(t.name for t in threading.enumerate() if not t.name.startswith("Trio"))
            ),
            children=tuple(sorted(cls._children())),
        )

    @staticmethod
    def _descriptors() -> list[str]:
        found = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except FileNotFoundError:
                continue  # the one that listdir itself had open
            # Numbers of sockets and pipes tell two of them apart; their kind is what counts.
            found.append(target.partition("[")[0] if target[0] != "/" else target)
        return found

    @staticmethod
    def _children() -> list[int]:
        children: list[int] = []
        for task in Path("/proc/self/task").iterdir():
            try:
                children.extend(map(int, (task / "children").read_text().split()))
            except FileNotFoundError:
                continue  # that thread has just ended
        return children


@contextmanager
def nothing_grows() -> Iterator[None]:
    """Assert that the block leaves the census as it was, no mappings, and under 2 MiB of memory.

    For what is done a thousand times in it, and was done some times before: the first of all may
    leave what is kept for the next. Linux only.
    """
    gc.collect()
    census, maps, resident = Census.take(), _maps(), _resident_kib()
    yield
    gc.collect()
    after, more_maps, growth = Census.take(), _maps() - maps, _resident_kib() - resident
    assert after == census, f"{after} instead of {census}"
    assert more_maps <= ALLOCATOR_MAPS, f"{more_maps} mappings more"
    assert growth < GROWTH_KIB, f"{growth} KiB more"


def _maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def _resident_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")
