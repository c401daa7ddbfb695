"""What the host says about itself. Small reads, never an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
CPUFREQ: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq")
CPUINFO_BYTES: Final = 4096
"""One CPU's entry; there may be hundreds."""


def counter_khz() -> int | None:
    """The rate of the CPU's time stamp counter, where the host knows and tells it."""
    if CPUFREQ.exists():
        return None  # "cpu MHz" is what the CPU runs at just now
    try:
        with CPUINFO.open("rb") as cpuinfo:
            text = cpuinfo.read(CPUINFO_BYTES).decode("ascii", "replace")
    except OSError:
        return None
    return parse_counter_khz(text)


def parse_counter_khz(cpuinfo: str) -> int | None:
    """The counter's rate out of ``/proc/cpuinfo``, or None if that does not say. Pure.

    Linux prints as ``cpu MHz`` what it measured of the CPU at work if the CPU can measure that
    (aperfmperf). On most virtual machines it can't, and Linux prints the rate that it began with:
    with tsc_known_freq, the counter's, as the hypervisor gave it.
    """
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    rate = re.search(r"^cpu MHz\s*:\s*(\d{2,6})\.(\d{3})\s*$", cpuinfo, re.MULTILINE)
    if flags is None or rate is None:
        return None
    names = set(flags[1].split())
    if not {"hypervisor", "tsc_known_freq"} <= names or "aperfmperf" in names:
        return None
    return int(rate[1] + rate[2])
