"""The host's clocks as they are, and a way to wait until they may have jumped.

Linux says so by itself: a timer on the wall clock that is to be cancelled when that clock jumps
(timerfd_create(2), TFD_TIMER_CANCEL_ON_SET) makes its descriptor readable when the time was set
and when the system comes out of its sleep. Nobody wakes up for it before. Where there is no such
timer the clocks are looked at every two seconds, counted while the host runs.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Final

import trio

from microvm.host_clocks.jumps import ClockJump, ClockReading, JumpDetector
from microvm.host_clocks.timer import open_jump_timer

LOOK_EVERY_S: Final = 2.0
"""Without a timer that tells."""
LOOK_ANYWAY_S: Final = 300.0
"""With one: a kernel that forgets to tell costs five minutes, not the rest of the day."""

_RUNNING: Final = getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC)
_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux's CLOCK_MONOTONIC stands while the system sleeps, and macOS's does not."""


class HostClocks(ABC):
    """The clocks that a machine's host goes by: `SystemClocks`, but for tests."""

    @abstractmethod
    def read(self) -> ClockReading:
        """All of them, now."""

    @abstractmethod
    async def wait_for_a_look(self) -> None:
        """Return when they may have jumped; sooner and more often is fine.

        One task at a time waits.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Nobody waits any more, or will."""


def read_clocks() -> ClockReading:
    """This system's clocks, now."""
    return ClockReading(
        running=time.clock_gettime(_RUNNING),
        boot=time.clock_gettime(_BOOT),
        wall=time.time(),
    )


class JumpWatch:
    """The jumps of a host's clocks, from now on, one after the other."""

    def __init__(self, clocks: HostClocks) -> None:
        self._clocks = clocks
        self._detector = JumpDetector(clocks.read())

    async def next(self) -> ClockJump:
        """Wait for the next one."""
        while True:
            await self._clocks.wait_for_a_look()
            if (jump := self._detector.observe(self._clocks.read())) is not None:
                return jump


class SystemClocks(HostClocks):
    """This system's."""

    def __init__(self) -> None:
        self._timer = open_jump_timer()

    def read(self) -> ClockReading:
        """All of them, now."""
        return read_clocks()

    async def wait_for_a_look(self) -> None:
        """Return when they may have jumped."""
        if self._timer is None:
            await trio.sleep(LOOK_EVERY_S)
            return
        with trio.move_on_after(LOOK_ANYWAY_S):
            await trio.lowlevel.wait_readable(self._timer)
            with suppress(OSError):  # ECANCELED: it has jumped, and the timer waits for the next
                os.read(self._timer, 8)

    def close(self) -> None:
        """Close the timer."""
        if self._timer is not None:
            os.close(self._timer)
            self._timer = None
