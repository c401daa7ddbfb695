"""Machines of paper: the least that a platform has to do, done properly.

A machine ends once, everything started for it ends with its context, and what it can't do it
refuses with a typed error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from microvm.abc import GuestChannels, HostedPlatform, RunningMachine
from microvm.errors import ConfigError, GuestRefused
from microvm.outcome import MachineOutcome, OutcomeReason

if TYPE_CHECKING:
    from microvm.abc import MachinePlan

ECHO_PORT = 7
"""Of the Echo Protocol (RFC 862)."""


class PaperPlatform(HostedPlatform):
    """Draws a machine instead of running it."""

    @asynccontextmanager
    async def start(self, plan: MachinePlan) -> AsyncIterator[RunningMachine]:
        async with trio.open_nursery() as nursery:
            machine = PaperMachine(plan, nursery)
            plan.timeline.mark("drawing")
            try:
                yield machine
            finally:
                machine.end()
                nursery.cancel_scope.cancel()


class PaperMachine(RunningMachine):
    """A machine that does nothing until it is ended."""

    def __init__(self, plan: MachinePlan, nursery: trio.Nursery) -> None:
        self._channels = PaperChannels(nursery)
        self._console = (
            f"A drawing of {plan.kernel.name} with {plan.config.mem_size_mib} MiB.",
            "Nothing runs here.",
        )
        self._ended = trio.Event()

    @property
    def channels(self) -> GuestChannels:
        return self._channels

    def end(self) -> None:
        """Tear the paper up."""
        self._ended.set()

    async def wait(self) -> MachineOutcome:
        await self._ended.wait()
        return MachineOutcome(
            reason=OutcomeReason.STOPPED,
            detail="The paper was put away.",
            console_tail=self._console,
        )

    async def kill(self) -> None:
        self.end()
        await trio.lowlevel.checkpoint()

    def console_tail(self) -> tuple[str, ...]:
        return self._console


@attrs.define(eq=False)
class PaperChannels(GuestChannels):
    """Streams to the one port where somebody listens."""

    _nursery: trio.Nursery
    _listening: set[int] = attrs.field(factory=set)

    async def connect(self, port: int) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        if port != ECHO_PORT:
            raise GuestRefused(f"Nothing listens on port {port}: it is a machine of paper.")
        near, far = trio.socket.socketpair()
        self._nursery.start_soon(echo, trio.SocketStream(far))
        return trio.SocketStream(near)

    def listen(self, port: int) -> PaperListener:
        if port in self._listening:
            raise ConfigError(f"Port {port} has a listener already.")
        self._listening.add(port)
        return PaperListener(self._listening, port)


class PaperListener(trio.abc.Listener[trio.SocketStream]):
    """Waits for a connection that paper never makes."""

    def __init__(self, listening: set[int], port: int) -> None:
        self._listening = listening
        self._port = port
        self._closed = trio.Event()

    async def accept(self) -> trio.SocketStream:
        await self._closed.wait()
        raise trio.ClosedResourceError("this listener was closed")

    async def aclose(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._listening.discard(self._port)
        await trio.lowlevel.checkpoint()


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, until the other side has no more."""
    async with stream:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass  # the other side went away; nothing is owed to it
