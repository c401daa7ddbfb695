"""`Machine`: the handle an application holds.

Everything a machine needs lives in one stack of contexts, entered in this order and left in the
opposite one: the control socket, the console's sink, device lifespans, the provisioners' listeners,
the platform's machine, a nursery with two tasks (one waits for the machine's end, one makes the
guest ready). The guest may dial the host before the platform's `start` has returned, hence
listeners first; and the sink is there for its last words.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

import attrs
import trio

from microvm._assembly import Assembly, BackendChoice, assemble
from microvm._groups import only_error
from microvm._link_notices import LinkNotices
from microvm._machine_guest import GuestVerbs
from microvm._machine_ports import PortVerbs
from microvm.abc import Capability, Guest, GuestChannels, GuestLink
from microvm.config import Isolation, MachineConfig
from microvm.errors import (
    BootError,
    ConfigError,
    GuestError,
    GuestGone,
    GuestNotReady,
    MicrovmError,
)
from microvm.metrics import MachineMetrics, device_names
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.timeline import BootTimeline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.abc import HalfCloseableStream

    from microvm.abc import (
        ConsoleSink,
        RunningMachine,
        VirtioDevice,
    )
    from microvm.consoles.served import SinkService
    from microvm.forwards.opening import ForwardOpener
    from microvm.host_clocks import HostClocks
    from microvm.plugins import PluginManager

log = logging.getLogger("microvm")

LinkT = TypeVar("LinkT", bound=GuestLink)

OUTCOME_GRACE_S = 1.0
"""How long a command that lost its guest waits to learn how the machine ended. The agent's
stream breaks a moment before the platform knows."""

STOP_GRACE_S = 3.0
"""How long `stop` gives the guest to end itself. The agent gives commands one second of it."""

BUTTON_GRACE_S = 5.0
"""How long `stop` then gives a guest whose power button was pressed: its init does all there is."""

PRESS_WITHIN_S = 0.5
"""How long the pressing itself may take: a worker that does not listen can't press."""


class Machine(GuestVerbs, PortVerbs):
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
        self._outcome: MachineOutcome | None = None
        self._ended = trio.Event()
        self._guest: Guest | None = None
        self._nursery: trio.Nursery | None = None
        self._ready_error: MicrovmError | None = None
        self._ready_known = trio.Event()
        self._stopping = False
        self._guest_agreed = False
        self._paused = False
        self._one_stop = trio.Lock()
        """Several may ask for the end at once, and the guest is asked by one of them."""

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
        self._stopping = True
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
                self._console = await self._join_console(stack, assembly)
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
                nursery.start_soon(self._watch, running)
                self._notices.links = links
                nursery.start_soon(self._make_ready, running, links)
                if links:
                    nursery.start_soon(self._watch_clocks)
                self._plugins.notify_machine_started(self)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._finish()

    async def _join_console(self, stack: AsyncExitStack, assembly: Assembly) -> SinkService | None:
        from microvm.consoles.sinks import sink_for

        sink = self._sink if self._sink is not None else sink_for(assembly.plan.config.console)
        if sink is None:
            return None
        from microvm.consoles.served import SinkService

        service = SinkService(sink)
        await stack.enter_async_context(service.lifespan())
        return service

    async def _attach(self, stack: AsyncExitStack, channels: GuestChannels) -> list[GuestLink]:
        assert self._assembly is not None
        self._channels = channels
        return [
            await stack.enter_async_context(provisioner.attach(channels))
            for provisioner in self._assembly.provisioners
        ]

    async def _watch(self, running: RunningMachine) -> None:
        ended = await running.wait()
        if self._guest_agreed and ended.reason is OutcomeReason.RESET:
            # Without ACPI a guest's only way to end its machine is a reset; this one was asked to.
            ended = attrs.evolve(
                ended, reason=OutcomeReason.POWERED_OFF, detail="The guest shut down when asked."
            )
        self._end_with(ended)
        if ended.reason is OutcomeReason.CRASHED and not self._stopping:
            log.warning("%s", ended.detail)

    async def _watch_clocks(self) -> None:
        await self._ready_known.wait()  # nobody has a clock before
        await self._notices.watch_clocks(lambda: self._paused)

    async def _make_ready(self, running: RunningMachine, links: list[GuestLink]) -> None:
        """Bring up the links in order, bounded by time and by the machine's own end."""
        assert self._plugins is not None
        guest: Guest | None = None
        failure: BaseException | None = None
        with trio.move_on_after(self.config.ready_within_s) as bound:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._give_up_at_end, nursery.cancel_scope)
                    for link in links:
                        guest = await link.wait_ready(self._timeline) or guest
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
            with trio.move_on_after(OUTCOME_GRACE_S):
                await self._ended.wait()
            self._ready_error = self._boot_error(running, failure)
        elif bound.cancelled_caught:
            self._ready_error = GuestNotReady(
                f"The guest did not report within {self.config.ready_within_s:g} s.",
                remedy="Its console lines may say why; raise ready_within_s if it is only slow.",
                console=running.console_tail(),
            )
        elif links and self._ended.is_set():
            self._ready_error = self._boot_error(running, None)
        else:
            self._guest = guest
            self._plugins.notify_guest_ready(self, guest)
        self._ready_known.set()

    async def _give_up_at_end(self, scope: trio.CancelScope) -> None:
        await self._ended.wait()
        scope.cancel()

    def _boot_error(self, running: RunningMachine, cause: BaseException | None) -> MicrovmError:
        if self._outcome is not None:
            error: MicrovmError = BootError(
                f"The machine ended before its guest was ready: {self._outcome.detail}",
                console=self._outcome.console_tail,
            )
        else:
            error = BootError(
                f"The guest could not be made ready: {cause}", console=running.console_tail()
            )
        error.__cause__ = cause
        return error

    def _end_with(self, ended: MachineOutcome) -> None:
        if self._outcome is None:
            self._outcome = ended
            self._ended.set()

    def _finish(self) -> None:
        """After the stack is gone: nobody may be left waiting, and the hooks are told."""
        started = self._running is not None
        tail = self._running.console_tail() if self._running is not None else ()
        self._end_with(
            MachineOutcome(
                reason=OutcomeReason.STOPPED, detail="The host stopped it.", console_tail=tail
            )
        )
        if not self._ready_known.is_set():
            self._ready_error = GuestGone("The machine was stopped.")
            self._ready_known.set()
        if started:
            assert self._plugins is not None
            assert self._outcome is not None
            self._plugins.notify_machine_stopped(self, self._outcome)

    # --- what it is ----------------------------------------------------------------------

    @property
    def state(self) -> Literal["starting", "running", "paused", "ended"]:
        """What it does now, in a word."""
        if self._outcome is not None:
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

    def device(self, name: str) -> VirtioDevice:
        """A device by its name in `metrics` (``balloon0``), for what only its kind can do.

        Raises:
            ConfigError: there is no such device, or it is in a worker process.
        """
        devices = self._planned().plan.devices
        by_name = dict(zip(device_names(d.name for d in devices), devices, strict=True))
        if name in by_name:
            return by_name[name].device
        if self.config.isolation is Isolation.PROCESS:
            raise ConfigError(
                f"{name!r} can't be had: the machine's devices are in its worker process.",
                remedy='Give MachineConfig isolation="inline" to have them here.',
            )
        raise ConfigError(
            f"This machine has no device {name!r}; it has {', '.join(by_name) or 'none'}."
        )

    @property
    def console_tail(self) -> tuple[str, ...]:
        """The guest's last console lines, control characters made visible."""
        return self._started().console_tail()

    @property
    def console_path(self) -> str | None:
        """Where the console is to be found: the file, or the terminal made for it."""
        return self._console.sink.path if self._console is not None else None

    @property
    def outcome(self) -> MachineOutcome | None:
        """How it ended, or None while it runs."""
        return self._outcome

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
        await self._ended.wait()
        assert self._outcome is not None
        return self._outcome

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
        """The same error with the machine's end in it, when the machine has ended."""
        with trio.move_on_after(OUTCOME_GRACE_S):
            await self._ended.wait()
        if self._outcome is None:
            return GuestGone(error.message, console=self._started().console_tail())
        return GuestGone(
            f"{error.message} {self._outcome.detail}", console=self._outcome.console_tail
        )

    def _streams(self) -> GuestChannels:
        self._started()
        if self._channels is None:
            raise ConfigError(
                "This machine has no channel to guest ports.",
                remedy="Give MachineConfig a vsock device.",
            )
        return self._channels

    async def open_console(self) -> HalfCloseableStream:
        """A stream to the guest's console, both ways; see `RunningMachine.open_console`."""
        self._need(Capability.CONSOLE)
        return await self._started().open_console()

    def _forwards(self) -> ForwardOpener:
        from microvm.forwards.opening import ForwardOpener

        channels = self._streams()
        assert self._nursery is not None
        if self._outcome is not None:
            raise GuestGone(f"The machine has ended. {self._outcome.detail}")
        return ForwardOpener(self._nursery, channels, self.wait_ready, self._ready_known.wait)

    async def wait_console(self) -> None:
        """Wait until the console's sink has ended. At once, where there is none.

        It ends with the guest's last words, or because whoever sat at it has left.
        """
        self._started()
        if self._console is not None:
            await self._console.ended.wait()

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
            raise ConfigError(
                f"Backend {self.backend.name!r} has no capability {capability.value!r}."
            )

    async def stop(self) -> MachineOutcome:
        """End the machine, in stages; each has its time, and the next one needs the guest less.

        1. The agent is asked, and ends commands, file systems and the guest: 3 s.
        2. The power button is pressed, where there is one (`Capability.POWER_BUTTON`): 5 s.
        3. The machine is ended, whatever the guest does.

        A paused guest can't be asked, and is ended at once. Doing so twice, or after it has ended,
        is fine. For less patience use a cancel scope around it: leaving the machine's block ends
        it at once.
        """
        running = self._started()
        async with self._one_stop:
            return await self._stop(running)

    async def _stop(self, running: RunningMachine) -> MachineOutcome:
        self._stopping = True
        if self._outcome is None and not self._paused:
            with trio.move_on_after(STOP_GRACE_S):
                await self._ask_agent()
        if self._outcome is None and not self._paused and self._can(Capability.POWER_BUTTON):
            with trio.move_on_after(BUTTON_GRACE_S):
                await self._press_button(running)
        if self._outcome is None:
            await running.kill()
        return await self.wait()

    async def _ask_agent(self) -> None:
        if self._guest is None:
            return
        try:
            await self._guest.shutdown()
        except GuestError:
            return  # a guest that can't be asked is ended by other means
        self._guest_agreed = True
        await self._ended.wait()

    async def _press_button(self, running: RunningMachine) -> None:
        try:
            with trio.move_on_after(PRESS_WITHIN_S) as bound:
                await running.press_power_button()
        except MicrovmError as error:
            log.warning("The power button could not be pressed: %s", error)
            return
        if bound.cancelled_caught:
            return
        self._guest_agreed = True
        await self._ended.wait()
