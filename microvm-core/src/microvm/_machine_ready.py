"""How a machine's guest gets ready: its links are brought up, bounded by time and by its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from microvm._groups import only_error
from microvm.errors import BootError, GuestNotReady, MicrovmError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm._machine_end import MachineEnd
    from microvm.abc import Guest, GuestLink, RunningMachine
    from microvm.timeline import BootTimeline


async def bring_up(
    links: Sequence[GuestLink],
    running: RunningMachine,
    end: MachineEnd,
    timeline: BootTimeline,
    *,
    within_s: float,
) -> Guest | None:
    """Bring up the links in order, and return the guest if one of them has it.

    Raises:
        GuestNotReady: they were not up within `within_s`.
        BootError: the machine ended first, or a link failed.
    """
    guest: Guest | None = None
    failure: BaseException | None = None
    with trio.move_on_after(within_s) as bound:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_give_up_at, end, nursery.cancel_scope)
                for link in links:
                    guest = await link.wait_ready(timeline) or guest
                if guest is not None:
                    for link in links:
                        await link.build_on(guest)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            ours, others = group.split(MicrovmError)
            if others is not None or ours is None:
                raise
            failure = only_error(ours)
    if failure is not None:
        # The machine's end explains more than what its half-open streams said of it.
        await end.wait_a_little()
        raise _boot_error(running, end, failure) from failure
    if bound.cancelled_caught:
        raise GuestNotReady(
            f"The guest did not report within {within_s:g} s.",
            remedy="Its console lines may say why; raise ready_within_s if it is only slow.",
            console=running.console_tail(),
        )
    if links and end.outcome is not None:
        raise _boot_error(running, end, None)
    return guest


async def _give_up_at(end: MachineEnd, scope: trio.CancelScope) -> None:
    await end.wait()
    scope.cancel()


def _boot_error(
    running: RunningMachine, end: MachineEnd, cause: BaseException | None
) -> MicrovmError:
    if end.outcome is not None:
        return BootError(
            f"The machine ended before its guest was ready: {end.outcome.detail}",
            console=end.outcome.console_tail,
        )
    return BootError(f"The guest could not be made ready: {cause}", console=running.console_tail())
