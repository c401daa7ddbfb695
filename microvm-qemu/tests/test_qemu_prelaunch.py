"""A QEMU started before there is a trio loop: taken over by the start, or ended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from microvm.abc import MachinePlan
from microvm.outcome import OutcomeReason
from microvm.testing.census import Census
from microvm_qemu._platform import QemuPlatform

pytestmark = pytest.mark.usefixtures("leaves_nothing")

MicroKernel = Callable[..., Path]
PlanOf = Callable[..., MachinePlan]


async def test_a_start_takes_over_the_process_that_was_launched_for_its_plan(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    plan = plan_of(micro_kernel("spin"))
    with platform.prelaunch(plan):
        launched = Census.take().children
        async with platform.start(plan):
            assert Census.take().children == launched


async def test_what_was_launched_runs_to_its_end(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    plan = plan_of(micro_kernel("reset", b"hello\r\n"))
    with platform.prelaunch(plan):
        async with platform.start(plan) as machine:
            assert (await machine.wait()).reason is OutcomeReason.RESET


async def test_the_start_of_another_plan_has_a_process_of_its_own(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("spin")
    with platform.prelaunch(plan_of(kernel)):
        async with platform.start(plan_of(kernel)):
            assert len(Census.take().children) == 2


def test_what_no_start_took_over_is_ended(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    before = Census.take()
    with pytest.raises(KeyboardInterrupt), platform.prelaunch(plan_of(micro_kernel("spin"))):
        assert len(Census.take().children) == 1
        raise KeyboardInterrupt
    assert Census.take() == before
