"""However a machine on QEMU is left, at whatever step: no process and no descriptor stays."""

import os
import select
import subprocess
import sys

import pytest
import trio

from microvm.abc import RunningMachine
from microvm.outcome import OutcomeReason
from microvm.testing.census import Census
from microvm_qemu._platform import QemuPlatform

from .conftest import MicroKernel, PlanOf
from .idle_devices import RNG, VSOCK

pytestmark = pytest.mark.usefixtures("leaves_nothing")


async def test_100_machines_one_after_another_leave_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("spin")
    for _ in range(100):
        async with platform.start(plan_of(kernel, [VSOCK])):
            pass


async def test_several_machines_at_once_leave_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("reset", b"done\r\n")

    async def one() -> None:
        async with platform.start(plan_of(kernel, [VSOCK])) as machine:
            assert (await machine.wait()).console_tail == ("done",)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)


async def test_the_bodys_error_comes_out_as_it_is(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with platform.start(plan_of(micro_kernel("spin"), [VSOCK])):
            raise ZeroDivisionError


async def test_who_still_waits_after_a_cancelled_machine_hears_that_it_was_stopped(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    started: list[RunningMachine] = []
    with trio.move_on_after(60) as scope:
        async with platform.start(plan_of(micro_kernel("spin"), [VSOCK])) as machine:
            started.append(machine)
            scope.cancel()
            await trio.sleep_forever()
    assert (await started[0].wait()).reason is OutcomeReason.STOPPED


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task takes."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def test_cancelling_at_any_step_of_a_start_leaves_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("spin")
    before = Census.take()
    for step in range(1, 400, 3):
        started = False
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with platform.start(plan_of(kernel, [VSOCK, RNG])):
                    started = True
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert Census.take() == before, f"cancelled before step {step}"
        if started and not scope.cancelled_caught:
            return
    pytest.fail("no start was left alone")


PARENT = """
import sys
from pathlib import Path
import trio
from microvm import BootSource, MachineConfig
from microvm.abc import MachinePlan
from microvm.testing.census import Census
from microvm.timeline import BootTimeline
from microvm_qemu import plugin

async def main():
    kernel = Path(sys.argv[1])
    plan = MachinePlan(
        config=MachineConfig(boot=BootSource(kernel=kernel)), kernel=kernel, initrd=None,
        cmdline="", devices=(), timeline=BootTimeline(),
    )
    async with plugin.create({}).start(plan) as machine:
        while not machine.console_tail():
            await trio.sleep(0.001)
        print(*Census.take().children, flush=True)
        await machine.wait()

trio.run(main)
"""


@pytest.mark.usefixtures("platform")
def test_kill_9_of_the_process_ends_its_machine_within_2_s(micro_kernel: MicroKernel) -> None:
    kernel = micro_kernel("spin", b"up\r\n")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(kernel)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout:
        qemu = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            ended, _, _ = select.select([qemu], [], [], 2.0)
            assert ended
        finally:
            os.close(qemu)


async def test_a_qemu_that_starts_when_we_are_gone_already_gives_up_itself(
    platform: QemuPlatform, plan_of: PlanOf, micro_kernel: MicroKernel
) -> None:
    """What `_launcher` relies on where setpriv asks too late for the death signal."""
    from microvm_qemu._process import held_process
    from microvm_qemu._wiring import Cables

    plan = plan_of(micro_kernel("spin"), [VSOCK])
    cables = Cables(1)
    argv = platform._argv(plan, cables)
    for end in (cables.monitor, cables.console, cables.stderr, await cables.device(0)):
        end.close()
    async with held_process(argv, pass_fds=cables.inherited, stderr=cables.far_stderr) as process:
        cables.close()
        with trio.fail_after(10):
            assert await process.wait() != 0
