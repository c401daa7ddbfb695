"""The `HostedPlatform` on QEMU: from a plan to a running machine, and back to nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Final

from microvm._groups import only_error
from microvm.abc import HostedPlatform, MachinePlan, RunningMachine
from microvm.errors import BackendError, ConfigError
from microvm.memory import host_mem_mib
from microvm_qemu import _host
from microvm_qemu._command import kernel_words, problems_with, qemu_arguments
from microvm_qemu._devices import CONNECTING
from microvm_qemu._launcher import dying_with_parent
from microvm_qemu._process import HeldProcess, finish
from microvm_qemu._wiring import Cables

if TYPE_CHECKING:
    from microvm.config import MachineConfig
    from microvm_qemu._machine import QemuMachine
    from microvm_qemu._options import QemuOptions
    from microvm_qemu._probe import FoundQemu

LAUNCH_WITHIN_S: Final = 30.0
"""For QEMU to make the machine; it takes 40 ms."""


class _Launched:
    """A QEMU that runs, and our ends of what joins us to it."""

    def __init__(self, process: HeldProcess, cables: Cables) -> None:
        self.process = process
        self.cables = cables

    def close(self) -> None:
        """End it. Blocks for the few milliseconds that takes."""
        self.process.close()
        self.cables.close()


class QemuPlatform(HostedPlatform):
    """Starts machines on one QEMU program."""

    def __init__(self, options: QemuOptions, found: FoundQemu) -> None:
        self._options = options
        self._found = found
        self._prelaunched: dict[MachinePlan, _Launched] = {}

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """As `HostedPlatform.kernel_cmdline`."""
        return kernel_words(config, self._options, counter_khz=_host.counter_khz())

    @contextmanager
    def prelaunch(self, plan: MachinePlan) -> Iterator[None]:
        """As `HostedPlatform.prelaunch`: QEMU starts, and waits for its devices to be served."""
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

        Marks ``spawn`` when the process is there and ``qemu`` when the guest runs.

        Raises:
            ConfigError: the host or this QEMU can't do what the plan wants; lists every problem.
        """
        launched = self._prelaunched.pop(plan, None) or self._launch(plan)
        try:
            # QEMU takes 40 ms to be there: time to import what is only needed then.
            import trio

            from microvm_qemu._machine import QemuMachine

            machine = QemuMachine(launched.process, launched.cables)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(machine.run, plan.devices)
                    try:
                        await _launched(machine)
                        plan.timeline.mark("qemu")
                        yield machine
                    finally:
                        with trio.CancelScope(shield=True):
                            await machine.kill()
            except BaseExceptionGroup as group:
                raise only_error(group) from None
            finally:
                # `run` did it, unless it was cancelled.
                machine.conclude()
        finally:
            await finish(launched.process)
            launched.cables.close()

    def _launch(self, plan: MachinePlan) -> _Launched:
        problems = problems_with(plan, self._found.facts, host_mem_mib=host_mem_mib())
        if problems:
            raise ConfigError("QEMU can't run the machine as described:", problems=problems)
        with ExitStack() as undo:
            named = [i for i, d in enumerate(plan.devices) if d.device.device_id in CONNECTING]
            cables = undo.enter_context(closing(Cables(len(plan.devices), named)))
            process = HeldProcess(
                self._argv(plan, cables), pass_fds=cables.inherited, stderr=cables.far_stderr
            )
            undo.pop_all()
        cables.close_far()
        plan.timeline.mark("spawn")
        return _Launched(process, cables)

    def _argv(self, plan: MachinePlan, cables: Cables) -> list[str]:
        found = self._found
        arguments = qemu_arguments(plan, self._options, found.facts, cables.wiring)
        return dying_with_parent(
            [found.program, *arguments],
            setpriv=found.setpriv if plan.devices else None,
            python=sys.executable,
            parent=os.getpid(),
        )


async def _launched(machine: QemuMachine) -> None:
    import trio

    with trio.move_on_after(LAUNCH_WITHIN_S) as launching:
        await machine.launched()
    if launching.cancelled_caught:
        raise BackendError(
            f"QEMU did not make the machine within {LAUNCH_WITHIN_S:g} s.",
            remedy="Look whether the host is overloaded, or its disks hang.",
        )
