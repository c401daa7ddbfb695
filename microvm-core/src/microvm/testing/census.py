"""What a process holds, counted: a test compares before and after."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import attrs


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
