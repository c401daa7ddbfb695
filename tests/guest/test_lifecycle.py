"""A machine's life and its ends, with real guests."""

import os
import signal

import pytest
import trio

from microvm import BootError, BootSource, GuestGone, Machine, MachineConfig, OutcomeReason
from microvm.testing.census import Census

pytestmark = pytest.mark.linux_guest


def qemu_children() -> list[int]:
    return list(Census.take().children)


async def test_100_machines_one_after_another_leave_nothing() -> None:
    async with Machine() as machine:  # what is loaded once is loaded now
        await machine.run(["true"], check=True)
    before = Census.take()
    for number in range(100):
        async with Machine() as machine:
            if number % 10 == 0:
                await machine.run(["true"], check=True)
    assert Census.take() == before


async def test_cancelling_the_scope_around_a_machine_ends_it(leaves_nothing: None) -> None:
    with trio.move_on_after(600) as scope:
        async with Machine() as machine:
            await machine.wait_ready()
            qemus = qemu_children()
            scope.cancel()
            await trio.sleep_forever()
    for qemu in qemus:
        with pytest.raises(ProcessLookupError):
            os.kill(qemu, 0)


async def test_the_bodys_own_error_comes_out_as_it_is(leaves_nothing: None) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Machine() as machine:
            await machine.wait_ready()
            raise ZeroDivisionError


@pytest.mark.qemu
async def test_qemu_killed_in_mid_command_is_told_with_the_console(leaves_nothing: None) -> None:
    async with Machine() as machine:
        await machine.wait_ready()
        (qemu,) = qemu_children()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_soon, machine, qemu)
            with pytest.raises(GuestGone, match="killed"):
                await machine.run(["sh", "-c", "echo 1; sleep 1000"])
        assert (await machine.wait()).reason is OutcomeReason.CRASHED


async def kill_soon(machine: Machine, pid: int) -> None:
    await machine.run(["true"])
    os.kill(pid, signal.SIGKILL)


async def test_a_panic_in_mid_command_is_told_with_the_console(leaves_nothing: None) -> None:
    async with Machine() as machine:
        with pytest.raises(GuestGone, match="panic") as caught:
            await machine.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"])
        assert any("Kernel panic" in line for line in caught.value.console)
        assert (await machine.wait()).reason is OutcomeReason.PANIC


async def test_a_kernel_without_an_init_panics_before_it_is_ready(leaves_nothing: None) -> None:
    from microvm_guest.image import default_image

    config = MachineConfig(boot=BootSource(kernel=default_image().kernel))
    async with Machine(config) as machine:
        with pytest.raises(BootError, match="before its guest was ready") as caught:
            await machine.wait_ready()
    assert any("Kernel panic" in line for line in caught.value.console)


async def test_stop_asks_the_guest_and_it_ends_by_itself(leaves_nothing: None) -> None:
    async with Machine() as machine:
        await machine.wait_ready()
        assert (await machine.stop()).reason is OutcomeReason.POWERED_OFF
        assert (await machine.stop()).reason is OutcomeReason.POWERED_OFF


async def test_a_paused_guest_answers_only_after_resume() -> None:
    async with Machine() as machine:
        guest = await machine.wait_ready()
        await machine.pause()
        with trio.move_on_after(0.3) as waited:
            await guest.ping()
        assert waited.cancelled_caught
        await machine.resume()
        assert await guest.ping() > 0
