"""`Machine`: the handle an application holds.

Everything a machine needs lives in one stack of contexts, entered in this order and left in the
opposite one: the control socket, the console's sink, device lifespans, the provisioners' listeners,
the platform's machine, a nursery with two tasks (one waits for the machine's end, one makes the
guest ready). The guest may dial the host before the platform's `start` has returned, hence
listeners first; and the sink is there for its last words.

What is told elsewhere: the end in `_machine_end`, getting ready in `_machine_ready`; and of what
it can do, the guest's part in `_machine_guest`, ports in `_machine_ports`, the console in
`_machine_console`, devices in `_machine_devices`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

import trio

from microvm._assembly import Assembly, BackendChoice, assemble
from microvm._groups import only_error
from microvm._link_notices import LinkNotices
from microvm._machine_console import ConsoleVerbs, join_console
from microvm._machine_devices import DeviceVerbs
from microvm._machine_end import MachineEnd
from microvm._machine_guest import GuestVerbs
from microvm._machine_ports import PortVerbs
from microvm._machine_ready import bring_up
from microvm.abc import Capability, Guest, GuestChannels, GuestLink
from microvm.config import MachineConfig
from microvm.errors import ConfigError, GuestGone, MicrovmError
from microvm.metrics import MachineMetrics
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.timeline import BootTimeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from microvm.abc import ConsoleSink, RunningMachine
    from microvm.consoles.served import SinkService
    from microvm.forwards.opening import ForwardOpener
    from microvm.host_clocks import HostClocks
    from microvm.plugins import PluginManager

LinkT = TypeVar("LinkT", bound=GuestLink)


class Machine(GuestVerbs, PortVerbs, ConsoleVerbs, DeviceVerbs):
    """A microVM, as an async context manager on trio.

    Entering it plans the machine, starts it and returns while the guest boots; `run` and the
    other verbs wait for the guest by themselves. Leaving it, also by cancellation or an error,
    ends the guest at once and leaves no process, thread, socket or file behind.

    All methods are for the trio thread that entered it.

    Args:
        config: The machine, described; the default is a minimal guest with the agent.
        plugins: Where components come from; the default is what is installed.
        assembly: The machine already planned, with `config` and `plugins` those of the planning;
            for a program that launched its platform early (`HostedPlatform.prelaunch`).
        console: Where its console leads, in place of what `MachineConfig.console` says.
        clocks: The host's clocks, for tests: a guest is told when its host has slept.

    Raises (on entry):
        ConfigError: the description can't be built; every problem is listed.
        PluginError: a component is missing or broken.
        BackendError: no backend can run, or the one chosen failed to start.
        ImageError: the kernel or initrd can't be used, or no image has been built.

    Example:
        async with Machine(MachineConfig(mem_size_mib=256)) as machine:
            result = await machine.run(["uname", "-r"], check=True)
    """

    def __init__(
        self,
        config: MachineConfig | None = None,
        *,
        plugins: PluginManager | None = None,
        assembly: Assembly | None = None,
        console: ConsoleSink | None = None,
        clocks: HostClocks | None = None,
    ) -> None:
        self.config = config if config is not None else MachineConfig()
        self._plugins = plugins
        self._sink = console
        self._notices = LinkNotices(clocks)
        self._console: SinkService | None = None
        self._timeline = assembly.plan.timeline if assembly is not None else BootTimeline()
        self._scope: AbstractAsyncContextManager[None] | None = None
        self._assembly = assembly
        self._running: RunningMachine | None = None
        self._channels: GuestChannels | None = None
        self._end = MachineEnd()
        self._guest: Guest | None = None
        self._nursery: trio.Nursery | None = None
        self._ready_error: MicrovmError | None = None
        self._ready_known = trio.Event()
        self._paused = False

    # --- life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Machine:
        if self._scope is not None:
            raise RuntimeError("A Machine is entered once; make a new one to start again.")
        self._scope = self._live()
        try:
            await self._scope.__aenter__()
        except BaseExceptionGroup as group:
            raise only_error(group) from None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The body's own error must come out as it is. Shown to the nurseries within, it would
        # return wrapped in an exception group for each of them; so they see a normal end.
        assert self._scope is not None
        self._end.wanted = True
        try:
            await self._scope.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            raise only_error(group) from None

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[None]:
        if self._plugins is None:
            from microvm.plugins import installed_plugins

            self._plugins = installed_plugins()
        assembly = self._assembly
        if assembly is None:
            assembly = self._assembly = assemble(self.config, self._plugins, self._timeline)
        try:
            async with AsyncExitStack() as stack:
                if self.config.name is not None:
                    from microvm.control.server import ControlServer

                    server = ControlServer(self.config.name, self)
                    await stack.enter_async_context(server.lifespan())
                console = assembly.plan.config.console
                self._console = await join_console(stack, self._sink, console)
                for attached in assembly.plan.devices:
                    await stack.enter_async_context(attached.device.lifespan())
                links: list[GuestLink] = []
                if assembly.channels is not None:
                    links = await self._attach(stack, assembly.channels)
                self._running = running = await stack.enter_async_context(
                    assembly.platform.start(assembly.plan)
                )
                if self._console is not None:
                    self._console.start(running)
                    stack.push_async_callback(self._console.wait_joined)
                if running.channels is not None and assembly.channels is None:
                    links = await self._attach(stack, running.channels)
                nursery = await stack.enter_async_context(trio.open_nursery())
                self._nursery = nursery
                nursery.start_soon(self._end.watch, running)
                self._notices.links = links
                nursery.start_soon(self._make_ready, running, links)
                if links:
                    nursery.start_soon(self._watch_clocks)
                self._plugins.notify_machine_started(self)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._finish()

    async def _attach(self, stack: AsyncExitStack, channels: GuestChannels) -> list[GuestLink]:
        assert self._assembly is not None
        self._channels = channels
        return [
            await stack.enter_async_context(provisioner.attach(channels))
            for provisioner in self._assembly.provisioners
        ]

    async def _watch_clocks(self) -> None:
        await self._ready_known.wait()  # nobody has a clock before
        await self._notices.watch_clocks(lambda: self._paused)

    async def _make_ready(self, running: RunningMachine, links: list[GuestLink]) -> None:
        assert self._plugins is not None
        within_s = self.config.ready_within_s
        try:
            guest = await bring_up(links, running, self._end, self._timeline, within_s=within_s)
        except MicrovmError as error:
            self._ready_error = error.with_traceback(None)  # raised anew for each who waits
        else:
            self._guest = guest
            self._plugins.notify_guest_ready(self, guest)
        self._ready_known.set()

    def _finish(self) -> None:
        """After the stack is gone: nobody may be left waiting, and the hooks are told."""
        started = self._running is not None
        tail = self._running.console_tail() if self._running is not None else ()
        self._end.come(
            MachineOutcome(
                reason=OutcomeReason.STOPPED, detail="The host stopped it.", console_tail=tail
            )
        )
        if not self._ready_known.is_set():
            self._ready_error = GuestGone("The machine was stopped.")
            self._ready_known.set()
        if started:
            assert self._plugins is not None
            assert self._end.outcome is not None
            self._plugins.notify_machine_stopped(self, self._end.outcome)

    # --- what it is ----------------------------------------------------------------------

    @property
    def state(self) -> Literal["starting", "running", "paused", "ended"]:
        """What it does now, in a word."""
        if self._end.outcome is not None:
            return "ended"
        if self._running is None:
            return "starting"
        return "paused" if self._paused else "running"

    @property
    def backend(self) -> BackendChoice:
        """The backend chosen, and why."""
        return self._planned().backend

    @property
    def timing(self) -> Mapping[str, float]:
        """The boot so far: phase to milliseconds, in order."""
        return self._timeline.phases

    @property
    def exit_counts(self) -> Mapping[str, int]:
        """VM exits by kind, where the backend counts them (`Capability.EXIT_COUNTS`)."""
        return self._started().exit_counts()

    @property
    def metrics(self) -> MachineMetrics:
        """Everything that is counted of the machine, now."""
        running = self._started()
        console = Counter(running.console_counters())
        if self._console is not None:
            console.update(self._console.sink.counters())
        return MachineMetrics(
            devices=running.device_counters(),
            exits=running.exit_counts(),
            console=dict(console),
            timing=self._timeline.phases,
        )

    @property
    def outcome(self) -> MachineOutcome | None:
        """How it ended, or None while it runs."""
        return self._end.outcome

    def _planned(self) -> Assembly:
        if self._assembly is None:
            raise RuntimeError("The machine is not started: use `async with Machine(...)`.")
        return self._assembly

    def _started(self) -> RunningMachine:
        if self._running is None:
            raise RuntimeError("The machine is not started: use `async with Machine(...)`.")
        return self._running

    # --- what it can do ------------------------------------------------------------------

    async def wait(self) -> MachineOutcome:
        """Wait until the machine has ended, by itself or by `stop`."""
        self._started()
        return await self._end.wait()

    async def wait_ready(self) -> Guest:
        """Wait until the guest's agent answers, and return the guest.

        Raises:
            GuestNotReady: it did not within `MachineConfig.ready_within_s`.
            BootError: the machine ended first, or the agent did not speak its protocol.
            ConfigError: the machine has no provisioner that runs commands.
        """
        self._started()
        await self._ready_known.wait()
        if self._ready_error is not None:
            raise self._ready_error
        if self._guest is None:
            raise ConfigError(
                "This machine has no agent to run commands.",
                remedy="Add 'agent' to MachineConfig.provisioners.",
            )
        return self._guest

    def link(self, kind: type[LinkT]) -> LinkT:
        """What a provisioner has made for this machine, by its class: a door to what it brings.

        Raises:
            ConfigError: the machine has no provisioner that makes such.
        """
        self._started()
        for link in self._notices.links:
            if isinstance(link, kind):
                return link
        raise ConfigError(
            f"This machine has no {kind.__name__}.",
            remedy="Add the provisioner that makes it to MachineConfig.provisioners.",
        )

    async def _explained(self, error: GuestGone) -> GuestGone:
        return await self._end.explain(error, self._started())

    def _streams(self) -> GuestChannels:
        self._started()
        if self._channels is None:
            raise ConfigError(
                "This machine has no channel to guest ports.",
                remedy="Give MachineConfig a vsock device.",
            )
        return self._channels

    def _forwards(self) -> ForwardOpener:
        from microvm.forwards.opening import ForwardOpener

        channels = self._streams()
        assert self._nursery is not None
        if self._end.outcome is not None:
            raise GuestGone(f"The machine has ended. {self._end.outcome.detail}")
        return ForwardOpener(self._nursery, channels, self.wait_ready, self._ready_known.wait)

    async def pause(self) -> None:
        """Stop the guest's CPUs until `resume`; its memory stays as it is.

        The guest is told first and has a second to prepare: what its programs have written is then
        on its disks.
        """
        self._need(Capability.PAUSE)
        running = self._started()
        if not self._paused:
            await self._notices.pausing()
        await running.pause()
        self._paused = True

    async def resume(self) -> None:
        """Let a paused guest go on, its clock set right."""
        self._need(Capability.PAUSE)
        await self._started().resume()
        was_paused, self._paused = self._paused, False
        if was_paused:
            await self._notices.resumed()

    def _can(self, capability: Capability) -> bool:
        return capability in self._planned().capabilities

    def _need(self, capability: Capability) -> None:
        if not self._can(capability):
            from microvm._backend_lacks import capability_remedy, lacks_capability

            assert self._plugins is not None
            lack = lacks_capability(self.backend.name, capability)
            remedy = capability_remedy(self._plugins, capability, capability.value)
            raise ConfigError(lack[0].upper() + lack[1:], remedy=remedy)

    async def stop(self) -> MachineOutcome:
        """End the machine, in stages; each has its time, and the next one needs the guest less.

        1. The agent is asked, and ends commands, file systems and the guest: 3 s.
        2. The power button is pressed, where there is one (`Capability.POWER_BUTTON`): 5 s.
        3. The machine is ended, whatever the guest does.

        A paused guest can't be asked, and is ended at once. Doing so twice, or after it has ended,
        is fine. For less patience use a cancel scope around it: leaving the machine's block ends
        it at once.
        """
        return await self._end.bring_about(
            self._started(),
            lambda: self._guest,
            lambda: self._paused,
            has_button=self._can(Capability.POWER_BUTTON),
        )
