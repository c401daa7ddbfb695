"""`WorkerPlatform`: machines that run in a worker process each."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from microvm._groups import only_error
from microvm.abc import HostedPlatform, MachinePlan, RunningMachine
from microvm.errors import ConfigError
from microvm.worker.frames import encode
from microvm.worker.order import Order
from microvm.worker.process import WorkerProcess
from microvm.worker.wire import Wire

if TYPE_CHECKING:
    from microvm.worker.channels import WorkerChannels


class _Launched:
    """A worker that knows what to build, and our end of the wire to it."""

    def __init__(self, order: Order) -> None:
        message = {"plan": order.to_json()}
        try:
            encode(message)
        except ValueError as error:
            raise ConfigError(f"A worker process can't be told of this machine: {error}.") from None
        self.process = WorkerProcess()
        self.wire = Wire(self.process.control)
        self.wire.post(message)

    def close(self) -> None:
        """End it. Blocks for the few milliseconds that takes."""
        self.wire.close()
        self.process.close()


class WorkerPlatform(HostedPlatform):
    """Runs one plan's machine on a backend, in a process of its own.

    Args:
        backend: The backend's name; the worker loads it anew.
        channels: What the plan's user reaches the guest's ports by.
    """

    def __init__(self, backend: str, channels: WorkerChannels) -> None:
        self._backend = backend
        self._channels = channels
        self._prelaunched: dict[MachinePlan, _Launched] = {}

    @contextmanager
    def prelaunch(self, plan: MachinePlan) -> Iterator[None]:
        """As `HostedPlatform.prelaunch`: the worker starts, and launches its platform."""
        self._prelaunched[plan] = self._launch(plan)
        try:
            yield
        finally:
            unused = self._prelaunched.pop(plan, None)
            if unused is not None:
                unused.close()

    @asynccontextmanager
    async def start(self, plan: MachinePlan) -> AsyncIterator[RunningMachine]:
        """As `HostedPlatform.start`.

        Marks ``worker`` when the worker has loaded what the plan names, then what the backend
        marks.
        """
        launched = self._prelaunched.pop(plan, None) or self._launch(plan)
        try:
            # The worker takes longer than this to be there.
            import trio

            from microvm.worker.machine import WorkerMachine

            machine = WorkerMachine(launched.process, launched.wire, self._channels)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(machine.run)
                    try:
                        await machine.started(plan.timeline)
                        yield machine
                    finally:
                        with trio.CancelScope(shield=True):
                            await machine.finish()
            except BaseExceptionGroup as group:
                raise only_error(group) from None
        finally:
            launched.close()

    def _launch(self, plan: MachinePlan) -> _Launched:
        level = logging.getLogger("microvm").getEffectiveLevel()
        return _Launched(Order.of(plan, backend=self._backend, log_level=level))
