"""A platform whose machines are scripts: `Machine` and its callers are tested on it.

    async def guest(machine: ScriptedMachine) -> MachineOutcome | None: ...

plays the guest. What it returns is how the machine ends; None means that it runs on until it is
killed. It may use `machine.memory_channels.guest` to listen and to dial, and `machine.say` and
`machine.print` to print on the console; `machine.typed` is what it was sent there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from microvm.abc import (
    Capability,
    Guest,
    GuestChannels,
    GuestLink,
    HostedPlatform,
    MachinePlan,
    ProbeReport,
    Provisioner,
    RunningMachine,
)
from microvm.consoles.client import ConsoleDoor
from microvm.consoles.hub import ConsoleHub
from microvm.errors import MicrovmError
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.plugins import BackendFactory, ProvisionerFactory
from microvm.testing.channels import MemoryChannels

if TYPE_CHECKING:
    from pathlib import Path

    from microvm._machine import Machine
    from microvm.abc import ConsoleSink
    from microvm.timeline import BootTimeline

STOPPED = MachineOutcome(reason=OutcomeReason.STOPPED, detail="The host stopped it.")

Script = Callable[["ScriptedMachine"], Awaitable[MachineOutcome | None]]


async def runs_until_killed(machine: ScriptedMachine) -> MachineOutcome | None:
    """The script of a guest that does nothing."""
    return None


class ScriptedMachine(RunningMachine):
    """A running machine of a `ScriptedPlatform`."""

    def __init__(self, plan: MachinePlan) -> None:
        self.plan = plan
        self.memory_channels = MemoryChannels()
        self.paused = False
        self.power_button = trio.Event()
        """Set when the host presses it: a script may wait for that."""
        self.typed = bytearray()
        self._hub = ConsoleHub(lambda call: call())
        self.door = ConsoleDoor(self._hub, self._type)
        self._outcome: MachineOutcome | None = None
        self._ended = trio.Event()

    @property
    def channels(self) -> GuestChannels | None:
        return self.memory_channels

    def say(self, line: str) -> None:
        """Print a line on the console."""
        self.print(line.encode() + b"\n")

    def print(self, data: bytes) -> None:
        """Print bytes on the console."""
        self._hub.feed(data)

    def end(self, outcome: MachineOutcome) -> None:
        """End the machine; the first outcome stands."""
        if self._outcome is None:
            self._outcome = attrs.evolve(outcome, console_tail=self.console_tail())
            self.door.finish()
            self._ended.set()

    async def wait(self) -> MachineOutcome:
        await self._ended.wait()
        assert self._outcome is not None
        return self._outcome

    async def kill(self) -> None:
        self.end(STOPPED)
        await trio.lowlevel.checkpoint()

    async def pause(self) -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False

    async def press_power_button(self) -> None:
        self.power_button.set()

    def console_tail(self) -> tuple[str, ...]:
        return self._hub.tail()

    async def open_console(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        return self.door.open()

    async def _type(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.typed += data

    def console_counters(self) -> Mapping[str, int]:
        return self._hub.counters()


class ScriptedPlatform(HostedPlatform):
    """Starts `ScriptedMachine`s; `machines` keeps all that were started."""

    def __init__(self, script: Script = runs_until_killed) -> None:
        self.script = script
        self.machines: list[ScriptedMachine] = []
        self.machine_class: type[ScriptedMachine] = ScriptedMachine
        self.fail_start: MicrovmError | None = None
        self.live = 0
        """Machines between start and the end of their context: 0 after every test."""

    @asynccontextmanager
    async def start(self, plan: MachinePlan) -> AsyncIterator[RunningMachine]:
        if self.fail_start is not None:
            raise self.fail_start
        machine = self.machine_class(plan)
        self.machines.append(machine)
        self.live += 1
        plan.timeline.mark("spawn")
        try:
            async with trio.open_nursery() as consoles:
                machine.door.serve_in(consoles)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._play, machine)
                        yield machine
                        nursery.cancel_scope.cancel()
                finally:
                    machine.end(STOPPED)
        finally:
            self.live -= 1
            with trio.CancelScope(shield=True):
                await machine.kill()

    async def _play(self, machine: ScriptedMachine) -> None:
        outcome = await self.script(machine)
        if outcome is not None:
            machine.end(outcome)


@attrs.define(kw_only=True)
class ScriptedBackend:
    """A backend around one `ScriptedPlatform`; give its `factory()` to `plugin_manager`."""

    platform: ScriptedPlatform = attrs.field(factory=ScriptedPlatform)
    name: str = "scripted"
    usable: bool = True
    reason: str = "It is made of Python."
    remedy: str | None = None
    preference: int = 50
    capabilities: frozenset[Capability] = frozenset(
        {Capability.OWN_CHANNELS, Capability.OWN_KERNEL, Capability.PAUSE, Capability.CONSOLE}
    )

    def factory(self) -> BackendFactory:
        """The record that a plugin would register."""
        return BackendFactory(
            name=self.name,
            summary="scripted machines for tests",
            capabilities=self.capabilities,
            preference=self.preference,
            probe=self._probe,
            create=lambda options: self.platform,
        )

    def _probe(self, options: Mapping[str, Any]) -> ProbeReport:
        return ProbeReport(
            backend=self.name, usable=self.usable, reason=self.reason, remedy=self.remedy
        )


_ALL_BUT_BUTTON = frozenset(Capability) - {Capability.POWER_BUTTON}


def scripted_machine(
    kernel: Path,
    script: Script = runs_until_killed,
    *,
    sink: ConsoleSink | None = None,
    capabilities: frozenset[Capability] | None = None,
    **fields: Any,
) -> Machine:
    """A machine, to be entered, whose guest is a script and has no agent.

    Args:
        kernel: A file that looks like one (`boot_files.tiny_kernel`).
        script: The guest.
        sink: As `Machine`'s ``console``.
        capabilities: The backend's; if not given all but a power button, which a script without
            a wish to end would only be waited for.
        fields: Of its `MachineConfig`.
    """
    from microvm._machine import Machine
    from microvm.config import BootSource, MachineConfig
    from microvm.testing.plugins import plugin_manager

    backend = ScriptedBackend(
        platform=ScriptedPlatform(script),
        capabilities=_ALL_BUT_BUTTON if capabilities is None else capabilities,
    )
    given = {"boot": BootSource(kernel=kernel), "vsock": None, "provisioners": (), **fields}
    return Machine(MachineConfig(**given), plugins=plugin_manager(backend.factory()), console=sink)


class ScriptedLink(GuestLink):
    """Ready when its `Guest` is set, or failed when an error is."""

    def __init__(self) -> None:
        self._known = trio.Event()
        self._result: Guest | MicrovmError | None = None

    def become(self, result: Guest | MicrovmError | None) -> None:
        """What `wait_ready` returns or raises, from now on."""
        self._result = result
        self._known.set()

    async def wait_ready(self, timeline: BootTimeline) -> Guest | None:
        await self._known.wait()
        timeline.mark("kernel")
        timeline.mark("agent")
        if isinstance(self._result, MicrovmError):
            raise self._result
        return self._result


@attrs.define(kw_only=True)
class ScriptedProvisioner(Provisioner):
    """A provisioner whose readiness a test decides."""

    name: str = "agent"
    link: ScriptedLink = attrs.field(factory=ScriptedLink)

    def factory(self) -> ProvisionerFactory:
        """The record that a plugin would register."""
        return ProvisionerFactory(name=self.name, summary="scripted", create=lambda: self)

    @asynccontextmanager
    async def attach(self, channels: GuestChannels) -> AsyncIterator[GuestLink]:
        yield self.link
