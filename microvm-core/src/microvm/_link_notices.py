"""What a machine tells its provisioners' links: pauses, and that clocks have stood.

Each link is told in a task of its own, at the same time, within a bound: none of them can do more
than take its time, and what one fails by is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from microvm.abc import GuestLink
    from microvm.host_clocks import ClockJump, ClockReading, HostClocks

log = logging.getLogger("microvm")

NOTICE_WITHIN_S: Final = 1.0
"""How long a pause waits for the guest to prepare for it, and `resume` for clocks to be set."""

JUMP_WITHIN_S: Final = 10.0
"""How long provisioners have to make up for a sleep of the host's, before it is let be."""

WATCH_CLOCKS_AFTER_S: Final = 0.5
"""From a guest that is ready: a machine for one command is in a hurry, and sleeps with nobody."""


class LinkNotices:
    """Tells the links of one machine.

    Args:
        clocks: The host's, for tests; the system's if None.
    """

    def __init__(self, clocks: HostClocks | None) -> None:
        self._clocks = clocks
        self._paused_at: ClockReading | None = None
        self.links: list[GuestLink] = []
        """Filled in when the machine has them."""

    async def pausing(self) -> None:
        """The guest's CPUs are about to be stopped."""
        await self._tell(lambda link: link.pausing(), NOTICE_WITHIN_S)
        self._paused_at = self._read()

    async def resumed(self) -> None:
        """They go on."""
        from microvm.host_clocks import ClockJump

        now = self._read()
        await self._tell_jump(ClockJump.of_pause(self._paused_at or now, now), NOTICE_WITHIN_S)

    async def watch_clocks(self, is_paused: Callable[[], bool]) -> None:
        """Tell them when the host has slept, or its clock was set; to be started with the guest.

        Of a guest that is paused they hear when it is resumed.
        """
        if self._clocks is None:
            await trio.sleep(WATCH_CLOCKS_AFTER_S)
        from microvm.host_clocks import JumpWatch, SystemClocks

        clocks = self._clocks if self._clocks is not None else SystemClocks()
        try:
            watch = JumpWatch(clocks)
            while True:
                jump = await watch.next()
                log.info(
                    "The host slept %.1f s; its clock was set by %.1f s.",
                    jump.slept_s,
                    jump.set_by_s,
                )
                if not is_paused():
                    await self._tell_jump(jump, JUMP_WITHIN_S)
        finally:
            clocks.close()

    def _read(self) -> ClockReading:
        from microvm.host_clocks import read_clocks

        return self._clocks.read() if self._clocks is not None else read_clocks()

    async def _tell_jump(self, jump: ClockJump, bound_s: float) -> None:
        await self._tell(lambda link: link.clock_changed(jump), bound_s)

    async def _tell(self, say: Callable[[GuestLink], Awaitable[None]], bound_s: float) -> None:
        async def tell(link: GuestLink) -> None:
            try:
                await say(link)
            except Exception:
                # a plugin's or a guest's fault, and neither is to end the machine
                log.warning("A provisioner could not do its part.", exc_info=True)

        with trio.move_on_after(bound_s):
            async with trio.open_nursery() as nursery:
                for link in self.links:
                    nursery.start_soon(tell, link)
