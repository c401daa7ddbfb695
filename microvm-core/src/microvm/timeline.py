"""Where the time of a boot goes: named phases and their length in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Clock = Callable[[], int]


class BootTimeline:
    """Phases of a boot in the order in which they ended.

    Not safe for use by several threads; a machine writes it on its trio thread.

    Args:
        clock: A monotonic clock in nanoseconds; tests give their own.
        started_ns: On that clock, when the first phase began, if not now.
    """

    def __init__(self, clock: Clock = time.monotonic_ns, *, started_ns: int | None = None) -> None:
        self._clock = clock
        self._start = self._last = clock() if started_ns is None else started_ns
        self._phases: dict[str, float] = {}

    def mark(self, phase: str, *, at_ns: int | None = None) -> None:
        """End `phase`, which began where the phase before it ended.

        Args:
            phase: Its name.
            at_ns: When it ended, on the timeline's clock, if not now; a time before the last
                phase's end, or after now, counts as that.
        """
        now = self._clock()
        if at_ns is not None:
            now = max(self._last, min(at_ns, now))
        self._phases[phase] = self._phases.get(phase, 0.0) + (now - self._last) / 1e6
        self._last = now

    @property
    def phases(self) -> Mapping[str, float]:
        """Phase name to milliseconds."""
        return dict(self._phases)

    @property
    def total_ms(self) -> float:
        """Milliseconds from the first moment to the last phase that ended."""
        return (self._last - self._start) / 1e6
