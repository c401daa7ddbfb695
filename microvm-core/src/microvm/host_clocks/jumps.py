"""Whether the host has slept or its time was set, from readings of its clocks. Pure.

Two clocks count seconds while the host runs. One of them, CLOCK_BOOTTIME, also counts those that it
sleeps: what it has gained on the other is the sleep. The wall clock against it shows a time that
was set. Three clocks are never read at one moment, and the wall clock is slewed by up to 0.05 %
(adjtimex(2)), so differences below a bound are none.
"""

from __future__ import annotations

import attrs

SMALLEST_S = 0.05
"""What is less is the time between two readings, or a clock that is being slewed."""


@attrs.frozen(kw_only=True)
class ClockReading:
    """The host's clocks at one moment, in seconds."""

    running: float
    """Stands while the host sleeps (CLOCK_MONOTONIC)."""
    boot: float
    """Counts sleep too (CLOCK_BOOTTIME)."""
    wall: float
    """Since 1970 (CLOCK_REALTIME)."""


@attrs.frozen(kw_only=True)
class ClockJump:
    """What a guest's clocks have missed: the host slept, its time was set, the guest was paused."""

    slept_s: float
    """How long the guest stood still, because its host slept or it was paused; 0 if it did not."""
    set_by_s: float
    """By how much the host's wall clock was set; negative: back."""

    @classmethod
    def of_pause(cls, before: ClockReading, after: ClockReading) -> ClockJump:
        """Of a guest that stood still between these two; a sleep of the host's counts with it."""
        stood = after.boot - before.boot
        set_by = (after.wall - before.wall) - stood
        return cls(slept_s=stood, set_by_s=set_by if abs(set_by) >= SMALLEST_S else 0.0)


class JumpDetector:
    """Compares each reading with the one before.

    Args:
        first: What later readings are compared with.
    """

    def __init__(self, first: ClockReading) -> None:
        self._last = first

    def observe(self, reading: ClockReading) -> ClockJump | None:
        """What happened between the last reading and this one, or None if nothing did."""
        last = self._last
        slept = (reading.boot - last.boot) - (reading.running - last.running)
        set_by = (reading.wall - last.wall) - (reading.boot - last.boot)
        slept = slept if slept >= SMALLEST_S else 0.0
        set_by = set_by if abs(set_by) >= SMALLEST_S else 0.0
        if not slept and not set_by:
            # The reference stays: small steps and slewing add up to one worth telling of.
            return None
        self._last = reading
        return ClockJump(slept_s=slept, set_by_s=set_by)
