"""The trio side of a machine of our own: devices served, the end awaited and explained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import trio

from microvm._groups import only_error
from microvm.abc import RunningMachine
from microvm.consoles.client import ConsoleDoor
from microvm.errors import GuestGone, HypervisorCallError
from microvm.vmm.end import End, EndKind, decide

if TYPE_CHECKING:
    from microvm.abc import Vcpu
    from microvm.metrics import DeviceCounters
    from microvm.outcome import MachineOutcome
    from microvm.virtio.mmio import VirtioMmioTransport
    from microvm.vmm.engine import Engine
    from microvm.vmm.vcpu_thread import VcpuThread

log = logging.getLogger("microvm.vmm")

IDLE_LOOK_EVERY_S: Final = 1.0
"""How often a machine whose CPUs did nothing meanwhile is looked at: have they halted for good?"""
HALT_LOOKS: Final = 200
HALT_LOOK_EVERY_S: Final = 0.005
"""A kernel that says it halts has its CPUs halted within milliseconds."""


class VmmMachine(RunningMachine):
    """A running `Engine`. Made and run by `HypervisorPlatform.start`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._vcpus_ended = trio.Event()
        self._served = trio.Event()
        self._ended = trio.Event()
        self._outcome: MachineOutcome | None = None
        self._paused = False
        self._pausing = trio.Lock()
        self._looking = False
        self._nursery: trio.Nursery | None = None
        self._console = ConsoleDoor(engine.console.hub, engine.send_typed)

    # --- RunningMachine ------------------------------------------------------------------

    async def wait(self) -> MachineOutcome:
        """As `RunningMachine.wait`."""
        await self._ended.wait()
        assert self._outcome is not None
        return self._outcome

    async def kill(self) -> None:
        """As `RunningMachine.kill`. Takes a few milliseconds."""
        self._engine.end(End(kind=EndKind.ASKED))
        await self._ended.wait()

    async def pause(self) -> None:
        """As `RunningMachine.pause`: first the vCPUs, then the devices. All of it, or none.

        Raises:
            GuestGone: the machine has ended.
            HypervisorCallError: a vCPU can't be kicked.
        """
        async with self._pausing:
            try:
                await self._of_each(lambda thread, done: thread.pause(done))
            except BaseException:  # a nursery's: a cancellation comes in a group
                if not self._paused:
                    self._let_go_on()
                raise
            self._paused = True
            # Half of the devices at rest is no state: and none takes long.
            with trio.CancelScope(shield=True):
                for transport in self._engine.transports:
                    await transport.quiesce()

    async def resume(self) -> None:
        """As `RunningMachine.resume`.

        Raises:
            GuestGone: the machine has ended.
        """
        self._still_there()
        async with self._pausing:
            self._let_go_on()

    def _let_go_on(self) -> None:
        for transport in self._engine.transports:
            transport.resume()
        for thread in self._engine.threads:
            thread.resume()
        self._paused = False

    def console_tail(self) -> tuple[str, ...]:
        """As `RunningMachine.console_tail`."""
        return self._engine.console.tail()

    async def open_console(self) -> trio.SocketStream:
        """As `RunningMachine.open_console`."""
        await trio.lowlevel.checkpoint()
        return self._console.open()

    def console_counters(self) -> Mapping[str, int]:
        """As `RunningMachine.console_counters`."""
        return self._engine.console.hub.counters()

    def exit_counts(self) -> Mapping[str, int]:
        """As `RunningMachine.exit_counts`."""
        return self._engine.exit_counts

    def device_counters(self) -> DeviceCounters:
        """As `RunningMachine.device_counters`."""
        return self._engine.device_counters

    # --- for the platform ----------------------------------------------------------------

    async def served(self) -> None:
        """Wait until `run` serves the devices, or has ended."""
        await self._served.wait()

    async def run(self) -> None:
        """Serve the devices until the vCPUs have ended; then the outcome stands.

        Not to be cancelled from without: `kill` ends it, the vCPUs first and the devices after
        them, so that no guest runs on with devices that are gone.

        Raises whatever a device raises that is no guest's fault, when the vCPUs have ended.
        """
        async with trio.open_nursery() as consoles:
            self._console.serve_in(consoles)
            try:
                await self._run()
            finally:
                self._console.finish()

    async def _run(self) -> None:
        engine = self._engine
        engine.attend(on_signs=self._on_signs, on_ended=self._vcpus_ended.set)
        try:
            async with trio.open_nursery() as devices:
                devices.cancel_scope.shield = True
                try:
                    for transport in engine.transports:
                        await devices.start(self._serve, transport)
                    async with trio.open_nursery() as nursery:
                        self._nursery = nursery
                        engine.calls.attach(trio.lowlevel.current_trio_token())
                        nursery.start_soon(self._watch_idle)
                        self._served.set()
                        await self._vcpus_ended.wait()
                        nursery.cancel_scope.cancel()
                finally:
                    self._nursery = None
                    with trio.CancelScope(shield=True):
                        await self._end_vcpus()
                devices.cancel_scope.cancel()
        finally:
            engine.calls.close()
            self._conclude()
            self._served.set()

    async def _end_vcpus(self) -> None:
        """See that they have ended, also when the devices could not be served at all."""
        self._engine.end(End(kind=EndKind.ASKED))
        if not self._engine.calls.attached:
            self._engine.calls.attach(trio.lowlevel.current_trio_token())
        await self._vcpus_ended.wait()

    async def _serve(
        self, transport: VirtioMmioTransport, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            await transport.serve(task_status=task_status)
        except Exception as error:
            what = f"A device failed on the host's side: {only_error(error)!r}"
            self._engine.end(End(kind=EndKind.HOST_ERROR, what=what))
            raise

    def _conclude(self) -> None:
        end = self._engine.why_ended
        assert end is not None
        console = self._engine.console
        signs = console.finish()
        self._outcome = decide(end, signs, console.tail())
        log.debug("%s", self._outcome.detail)
        self._ended.set()

    # --- is it over? ---------------------------------------------------------------------

    def _on_signs(self) -> None:
        """The kernel's words say that it hangs, or is about to halt."""
        signs = self._engine.console.signs
        if signs.hung:
            self._engine.end(End(kind=EndKind.HUNG))
        elif signs.halting and not self._looking and self._nursery is not None:
            self._looking = True
            self._nursery.start_soon(self._end_if_halting)

    async def _end_if_halting(self) -> None:
        for _ in range(HALT_LOOKS):
            if await self._end_if_halted():
                return
            await trio.sleep(HALT_LOOK_EVERY_S)

    async def _watch_idle(self) -> None:
        """A CPU that halts with interrupts off waits within the hypervisor, without an exit."""
        before: list[int | None] = []
        while True:
            await trio.sleep(IDLE_LOOK_EVERY_S)
            now = [thread.cpu_time_ns() for thread in self._engine.threads]
            if now == before and not self._paused and await self._end_if_halted():
                return
            before = now

    async def _end_if_halted(self) -> bool:
        halted: list[bool] = []

        def look(thread: VcpuThread, done: Callable[[], None]) -> None:
            def at_vcpu(vcpu: Vcpu) -> None:
                halted.append(vcpu.is_halted_for_good())
                done()

            thread.command(at_vcpu)

        try:
            await self._of_each(look)
        except GuestGone:
            return True
        except HypervisorCallError:  # one that can't be kicked now
            return False
        if all(halted):
            self._engine.end(End(kind=EndKind.HALTED))
        return all(halted)

    # --- all vCPUs -----------------------------------------------------------------------

    def _still_there(self) -> None:
        if self._engine.why_ended is not None:
            raise GuestGone("The machine has ended.")

    async def _of_each(self, act: Callable[[VcpuThread, Callable[[], None]], None]) -> None:
        """Have `act` done with each vCPU's thread, and wait until all have called back.

        Raises:
            GuestGone: the machine ended before.
        """
        self._still_there()
        threads = self._engine.threads
        left = len(threads)
        done = trio.Event()

        def count() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        for thread in threads:
            act(thread, lambda: self._engine.calls.post(count))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
            await done.wait()
            nursery.cancel_scope.cancel()
        if not done.is_set():
            raise GuestGone("The machine has ended.")

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        await self._vcpus_ended.wait()
        scope.cancel()
