"""When this process began, so that a timeline can hold Python's own start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from microvm.timeline import BootTimeline

STARTTIME_FIELD = 22
"""proc(5), /proc/pid/stat: time the process started after boot, in clock ticks (10 ms)."""


def timeline_since_process_start() -> BootTimeline:
    """A timeline whose first phase, ``python``, is the interpreter's start up to now.

    To a clock tick's precision; on a host without /proc the phase is left out.
    """
    now = time.monotonic_ns()
    try:
        # The second field is the program's name in parentheses and may hold anything.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[STARTTIME_FIELD - 3])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return BootTimeline()
    timeline = BootTimeline(started_ns=now - max(0, int(age_s * 1e9)))
    timeline.mark("python")
    return timeline
