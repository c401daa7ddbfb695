"""One run of a device, and what becomes of it: shared by the transports.

A transport has at most one run under way. It begins it in a task, by `drive`, and ends it by
`stop`, which is the only way it ends from without: an outer cancellation that passed through the
device would leave while the device's frames, and their views of guest memory, are still there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import trio

from microvm.abc import Doorbell
from microvm.errors import GuestError

if TYPE_CHECKING:
    from microvm.abc import Activation, VirtioDevice
    from microvm.virtio.counts import SignalCounts


class DeviceRun:
    """A device's `run`, from its activation to its end. Everything is for the trio thread.

    Args:
        device: The device.
        activate: Called in the task; opens the queues, or raises `GuestError`.
        deactivate: Called when the run is over, however it came.
        fresh: Whether the driver begins anew: the device is told to `reset` first.
        report: Called with the `GuestError` that ended the run, if one did.
    """

    def __init__(
        self,
        device: VirtioDevice,
        *,
        activate: Callable[[], Activation],
        deactivate: Callable[[], None],
        fresh: bool,
        report: Callable[[GuestError], None],
    ) -> None:
        self._device = device
        self._activate = activate
        self._deactivate = deactivate
        self._fresh = fresh
        self._report = report
        self._scope = trio.CancelScope(shield=True)
        self._ended = trio.Event()

    async def drive(self) -> None:
        """Run the device until it ends or `stop` is called."""
        try:
            if self._fresh:
                self._device.reset()
            with self._scope:
                await self._device.run(self._activate())
        except* GuestError as group:
            self._report(next(leaves(group)))
        finally:
            self._deactivate()
            self._ended.set()

    async def stop(self) -> None:
        """End the run and wait until nothing of it is left."""
        self._scope.cancel()
        await self._ended.wait()


def leaves(group: BaseExceptionGroup[GuestError]) -> Iterator[GuestError]:
    """The errors within a group, however deep."""
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from leaves(inner)
        else:
            yield inner


class RunDoorbell(Doorbell):
    """A doorbell as one run sees it: its first `wait` returns at once.

    A driver may have rung before the device was there, and a run that was cancelled may have
    heard a ring and not have come to serve it. That return counts as no notification.

    Args:
        doorbell: What the driver rings.
        counts: Where its rings are counted.
    """

    def __init__(self, doorbell: Doorbell, counts: SignalCounts) -> None:
        self._doorbell = doorbell
        self._counts = counts
        self._first = True

    async def wait(self) -> None:
        """As `Doorbell.wait`."""
        if self._first:
            self._first = False
            await trio.lowlevel.checkpoint()
            return
        await self._doorbell.wait()
        self._counts.notifications += 1
