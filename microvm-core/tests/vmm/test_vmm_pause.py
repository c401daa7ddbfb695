"""Pause and resume: of vCPUs and devices together, at any moment."""

import random
import threading
from contextlib import contextmanager

import pytest
import trio

from microvm import Machine, OutcomeReason
from microvm.errors import GuestGone, HypervisorCallError
from microvm.exits import PioWrite
from microvm.testing.census import nothing_grows
from microvm.testing.hypervisor import Spin

from .scripted_machine import (
    ACCEPT,
    DRIVER_OK,
    I8042_RESET,
    QUEUE,
    RESET,
    UPPER,
    WITHIN_S,
    guest,
    stores,
)


async def test_a_pause_holds_every_vcpu_and_a_resume_tells_their_clocks(machine_on) -> None:
    counts = [0, 0]

    def counting(vcpu):
        while True:
            counts[vcpu.index] += 1
            yield PioWrite(0x80, 1, b"\0")

    async with machine_on(counting, counting) as machine:
        await machine.pause()
        before = list(counts)
        await trio.sleep(0.02)
        assert counts == before
        await machine.resume()
        with trio.fail_after(WITHIN_S):
            while not (counts[0] > before[0] and counts[1] > before[1]):  # noqa: ASYNC110
                await trio.sleep(0.001)
        (vm,) = machine.hypervisor.vms
        assert [vcpu.resumes for vcpu in vm.vcpus.values()] == [1, 1]


class CountingGuest:
    """Sets up its device, and counts from then on."""

    def __init__(self) -> None:
        self.count = 0

    def script(self, vcpu):
        yield from stores(*ACCEPT, *QUEUE, DRIVER_OK)
        while True:
            self.count += 1
            yield PioWrite(0x80, 1, b"\0")

    async def going_on(self) -> None:
        """However long the host takes to let it."""
        before = self.count
        with trio.fail_after(WITHIN_S):
            while self.count == before:  # noqa: ASYNC110 - counted by the vCPU
                await trio.sleep(0.001)

    async def goes_on(self) -> bool:
        await trio.sleep(0.01)
        before = self.count
        await trio.sleep(0.02)
        return self.count > before


async def test_pause_and_resume_at_once_leave_cpus_and_devices_in_one_state(machine_on) -> None:
    counting = CountingGuest()
    async with machine_on(counting.script, devices=[UPPER]) as machine:
        await machine.upper.until("run")
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.pause)
                nursery.start_soon(machine.resume)
            assert await counting.goes_on() == machine.upper.running


async def test_a_pause_that_is_cancelled_is_none(machine_on) -> None:
    counting = CountingGuest()
    async with machine_on(counting.script, devices=[UPPER]) as machine:
        await machine.upper.until("run")
        with trio.CancelScope() as scope:
            scope.cancel()
            await machine.pause()
        assert scope.cancelled_caught
        await counting.going_on()
        assert machine.upper.running


async def test_a_pause_that_is_cancelled_while_a_cpu_is_awaited_is_undone(machine_on) -> None:
    counting, busy = CountingGuest(), threading.Event()

    def slow_to_obey(vcpu):
        busy.wait(WITHIN_S)  # the host's side of an exit, which no kick ends
        while True:
            yield PioWrite(0x80, 1, b"\0")

    async with machine_on(counting.script, slow_to_obey, devices=[UPPER]) as machine:
        await machine.upper.until("run")
        with trio.move_on_after(0.05) as scope:
            await machine.pause()
        assert scope.cancelled_caught
        await counting.going_on()
        assert machine.upper.running
        busy.set()
        await machine.pause()
        assert not await counting.goes_on()


async def test_a_pause_for_which_a_cpu_can_not_be_kicked_is_undone(machine_on) -> None:
    first, second = CountingGuest(), CountingGuest()
    async with machine_on(first.script, second.script) as machine:
        vcpu = machine.hypervisor.vms[0].vcpus[1]
        with unkickable(vcpu), pytest.raises(HypervisorCallError, match="pthread_kill"):
            await machine.pause()
        await first.going_on()
        await second.going_on()


async def test_a_resume_needs_no_kick(machine_on) -> None:
    first, second = CountingGuest(), CountingGuest()
    async with machine_on(first.script, second.script) as machine:
        await machine.pause()
        with unkickable(machine.hypervisor.vms[0].vcpus[0]):
            await machine.resume()
        await first.going_on()
        await second.going_on()


@contextmanager
def unkickable(vcpu):
    """The host has no signal left for it (RLIMIT_SIGPENDING)."""

    def no_signal_left() -> None:
        raise HypervisorCallError("pthread_kill", 11)

    vcpu.kick = no_signal_left
    try:
        yield
    finally:
        del vcpu.kick


async def test_a_pause_that_is_cancelled_while_devices_come_to_rest_can_be_resumed(
    machine_on,
) -> None:
    counting = CountingGuest()
    async with machine_on(counting.script, devices=[UPPER]) as machine:
        await machine.upper.until("run")
        machine.upper.end_takes_s = 0.1
        with trio.move_on_after(0.05):
            await machine.pause()
        assert not await counting.goes_on()
        await machine.resume()
        await machine.upper.until("run", 2)
        assert await counting.goes_on()


async def test_a_thousand_pauses_leave_nothing_behind(machine_on) -> None:
    """Row 100."""
    waiting = guest(*stores(*ACCEPT, *QUEUE, DRIVER_OK), Spin())
    async with machine_on(waiting, guest(Spin()), devices=[UPPER]) as machine:
        await machine.upper.until("run")

        async def cycle():
            await machine.pause()
            assert not machine.upper.running
            await machine.resume()

        for _ in range(20):
            await cycle()
        with nothing_grows():
            for _ in range(1000):
                await cycle()
        await machine.upper.until("run", 1021)
        await machine.pause()
        (vm,) = machine.hypervisor.vms
        assert [vcpu.resumes for vcpu in vm.vcpus.values()] == [1020, 1020]


async def test_a_paused_machine_is_stopped_like_any_other(machine_on, leaves_nothing) -> None:
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin())) as machine:
            await machine.pause()
            assert (await machine.stop()).reason is OutcomeReason.STOPPED


async def test_pausing_a_machine_that_has_ended_is_an_error(machine_on) -> None:
    async with machine_on(guest(I8042_RESET)) as machine:
        await machine.wait()
        with pytest.raises(GuestGone):
            await machine.pause()
        with pytest.raises(GuestGone):
            await machine.resume()


def beginning_and_resetting_its_device(vcpu):
    """A guest that does nothing else, for ever, and not always by the rules."""
    chance = random.Random(vcpu.index)
    while True:
        wild = [(chance.choice((0x44, 0x50, 0x70)), chance.choice((0, 1, 15)))]
        yield from stores(RESET, *ACCEPT, *QUEUE, DRIVER_OK, *wild * chance.randrange(3))


@pytest.mark.parametrize("seed", range(4))
async def test_a_guest_that_resets_its_device_all_the_time_is_paused_and_ended_at_any_moment(
    machine_on, leaves_nothing, seed
) -> None:
    chance = random.Random(seed)

    async def live(machine: Machine) -> None:
        async with machine:
            for _ in range(chance.randrange(4)):
                with trio.move_on_after(chance.random() * 0.003):
                    await machine.pause()
                await machine.resume()
            await trio.sleep_forever()

    for _ in range(20):
        machine = machine_on(*[beginning_and_resetting_its_device] * 2, devices=[UPPER])
        with trio.fail_after(WITHIN_S), trio.move_on_after(chance.random() * 0.02):
            await live(machine)
