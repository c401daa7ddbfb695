"""Clocks of a host that sleeps when a test says so.

clocks = SimulatedClocks()
async with Machine(config, clocks=clocks):
    clocks.sleep(3600)  # it has been asleep for an hour, and is awake again
"""

from __future__ import annotations

import time

import attrs
import trio

from microvm.host_clocks import ClockReading, HostClocks


class SimulatedClocks(HostClocks):
    """This system's clocks, shifted by what a test has done to them."""

    def __init__(self) -> None:
        self._asleep = 0.0
        self._set_by = 0.0
        self._look = trio.Event()

    def read(self) -> ClockReading:
        """As `HostClocks.read`."""
        now = time.monotonic()
        real = ClockReading(running=now, boot=now, wall=time.time())
        return attrs.evolve(
            real,
            boot=real.boot + self._asleep,
            wall=real.wall + self._asleep + self._set_by,
        )

    async def wait_for_a_look(self) -> None:
        """As `HostClocks.wait_for_a_look`."""
        await self._look.wait()
        self._look = trio.Event()

    def sleep(self, seconds: float) -> None:
        """Have slept, and be awake again."""
        self._asleep += seconds
        self._look.set()

    def set_wall(self, by_seconds: float) -> None:
        """Have the wall clock set forward, or back."""
        self._set_by += by_seconds
        self._look.set()
