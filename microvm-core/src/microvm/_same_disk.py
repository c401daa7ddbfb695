"""A disk that one machine has twice: two drivers of one guest would write over each other.

The lock on an image would refuse it too, but as if somebody else had it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from microvm.config import ConfigProblem

if TYPE_CHECKING:
    from microvm.config import DriveConfig


def same_disk_problems(drives: Sequence[DriveConfig]) -> Iterator[ConfigProblem]:
    """Each drive that is an earlier one's file, under whatever name, unless both only read it."""
    for index, drive in enumerate(drives):
        for earlier, other in enumerate(drives[:index]):
            both_read = drive.read_only and other.read_only
            if not both_read and _is_same(drive.path, other.path):
                yield ConfigProblem(
                    f"drives[{index}]",
                    f"is the disk of drives[{earlier}].",
                    "Name each disk once. Only where all are read-only may it be there twice.",
                )
                break


def _is_same(one: Path, other: Path) -> bool:
    """What is not there is told by whoever opens it."""
    try:
        return one == other or os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
