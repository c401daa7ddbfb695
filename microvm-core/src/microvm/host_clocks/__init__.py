"""The host's clocks: that the host has slept, or its time was set, is found here.

A guest's clocks stand while the host sleeps, so whoever keeps one is told when that is over.
"""

from __future__ import annotations

from microvm.host_clocks.jumps import ClockJump, ClockReading, JumpDetector
from microvm.host_clocks.system import HostClocks, JumpWatch, SystemClocks, read_clocks

__all__ = [
    "ClockJump",
    "ClockReading",
    "HostClocks",
    "JumpDetector",
    "JumpWatch",
    "SystemClocks",
    "read_clocks",
]
