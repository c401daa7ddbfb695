"""The `HostedPlatform` on QEMU: from a plan to a running machine, and back to nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Final

import trio

from microvm._groups import only_error
from microvm.abc import HostedPlatform, MachinePlan, RunningMachine
from microvm.errors import BackendError, ConfigError
from microvm_qemu import _host
from microvm_qemu._command import kernel_words, problems_with, qemu_arguments
from microvm_qemu._launcher import dying_with_parent
from microvm_qemu._process import held_process
from microvm_qemu._wiring import Cables

if TYPE_CHECKING:
    from microvm.config import MachineConfig
    from microvm_qemu._machine import QemuMachine
    from microvm_qemu._options import QemuOptions
    from microvm_qemu._probe import FoundQemu

LAUNCH_WITHIN_S: Final = 30.0
"""For QEMU to make the machine; it takes 40 ms."""


class QemuPlatform(HostedPlatform):
    """Starts machines on one QEMU program."""

    def __init__(self, options: QemuOptions, found: FoundQemu) -> None:
        self._options = options
        self._found = found

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """As `HostedPlatform.kernel_cmdline`."""
        return kernel_words(config, self._options, counter_khz=_host.counter_khz())

    @asynccontextmanager
    async def start(self, plan: MachinePlan) -> AsyncIterator[RunningMachine]:
        """As `HostedPlatform.start`.

        Marks ``spawn`` when the process is there and ``qemu`` when the guest runs.

        Raises:
            ConfigError: the host or this QEMU can't do what the plan wants; lists every problem.
        """
        problems = problems_with(plan, self._found.facts, host_mem_mib=_host.mem_mib())
        if problems:
            raise ConfigError("QEMU can't run the machine as described:", problems=problems)
        with closing(Cables(len(plan.devices))) as cables:
            async with held_process(
                self._argv(plan, cables), pass_fds=cables.inherited, stderr=cables.far_stderr
            ) as process:
                cables.close_far()
                plan.timeline.mark("spawn")
                # QEMU takes 40 ms to be there: time to import what is only needed then.
                from microvm_qemu._machine import QemuMachine

                machine = QemuMachine(process, cables)
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
    with trio.move_on_after(LAUNCH_WITHIN_S) as launching:
        await machine.launched()
    if launching.cancelled_caught:
        raise BackendError(
            f"QEMU did not make the machine within {LAUNCH_WITHIN_S:g} s.",
            remedy="Look whether the host is overloaded, or its disks hang.",
        )
