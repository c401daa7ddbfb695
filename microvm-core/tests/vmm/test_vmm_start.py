"""How vCPUs come up: with the guest's first instruction, all or none, or before there is a loop."""

import threading
import time
from contextlib import asynccontextmanager

import pytest
import trio

from microvm import BackendError, Machine, OutcomeReason
from microvm.errors import HypervisorCallError
from microvm.testing.hypervisor import FakeHypervisor, Spin

from .scripted_machine import (
    ACCEPT,
    I8042_RESET,
    UPPER,
    WITHIN_S,
    ending,
    guest,
    printed,
    stores,
)


async def test_the_boot_vcpu_starts_as_the_protocol_says_and_the_others_as_reset(
    machine_on,
) -> None:
    machine = machine_on(guest(Spin()), guest(Spin()))
    seen = {}

    async with machine:
        (vm,) = machine.hypervisor.vms

        def look(vcpu):
            seen[vcpu.index] = vcpu.registers()["rip"]

        for thread in machine._running._engine.threads:
            thread.command(look)
        while len(seen) < 2:  # noqa: ASYNC110 - written by vCPU threads
            await trio.sleep(0.001)
    assert seen == {0: 0x100_0200, 1: 0}
    assert [region.start for region in vm.regions] == []


async def test_each_vcpu_lives_on_a_thread_of_its_own(machine_on) -> None:
    async with machine_on(guest(Spin()), guest(Spin())) as machine:
        (vm,) = machine.hypervisor.vms
        threads = {vcpu.thread for vcpu in vm.vcpus.values()}
        assert len(threads) == 2
        assert threading.get_ident() not in threads


async def test_vcpus_are_created_one_at_a_time(machine_on) -> None:
    def slow(vcpu):
        time.sleep(0.05)  # within `create_vcpu`; the fake asserts that nobody else is
        return guest(Spin())(vcpu)

    async with machine_on(slow, slow, slow) as machine:
        assert len(machine.hypervisor.vms[0].vcpus) == 3


async def test_the_clock_of_a_vcpus_thread_is_asked_for_on_that_thread(
    machine_on, monkeypatch
) -> None:
    real, asked = time.pthread_getcpuclockid, []

    def asking(ident):
        asked.append((ident, threading.get_ident()))
        return real(ident)

    monkeypatch.setattr(time, "pthread_getcpuclockid", asking)
    async with machine_on(guest(Spin()), guest(Spin())) as machine:
        threads = machine._running._engine.threads
        assert all(thread.cpu_time_ns() > 0 for thread in threads)
    assert [thread.cpu_time_ns() for thread in threads] == [None, None]
    assert len(asked) == 2
    assert all(about == by for about, by in asked)


async def test_no_vcpu_runs_before_all_are_there(machine_on, leaves_nothing) -> None:
    started = []

    def script(vcpu):
        started.append(vcpu.index)
        yield Spin()

    class SecondFails(FakeHypervisor):
        def create_vm(self, *, vcpu_count):
            vm = super().create_vm(vcpu_count=vcpu_count)
            create = vm.create_vcpu

            def create_vcpu(index):
                if index == 1:
                    time.sleep(0.05)
                    raise HypervisorCallError("create_vcpu", 12)
                return create(index)

            vm.create_vcpu = create_vcpu
            return vm

    with pytest.raises(HypervisorCallError, match="create_vcpu failed"):
        async with machine_on(script, script, hypervisor=SecondFails(script, script)):
            pass
    assert started == []


@pytest.mark.parametrize("call", ["create_vm", "map_memory", "irq_line", "doorbell", "create_vcpu"])
async def test_a_call_that_fails_at_the_start_is_the_error_and_leaves_nothing(
    machine_on, leaves_nothing, call
) -> None:
    """Row 98."""
    machine = machine_on(guest(Spin()), guest(Spin()), devices=[UPPER])
    machine.hypervisor.failures[call] = HypervisorCallError(call, 12)
    with pytest.raises(HypervisorCallError, match=f"{call} failed"):
        async with machine:
            pass
    assert all(vm.closed for vm in machine.hypervisor.vms)


async def test_a_thread_that_the_host_does_not_give_is_an_error_that_says_so(
    machine_on, leaves_nothing, monkeypatch
) -> None:
    """Row 98."""
    real, started = threading.Thread.start, []

    def start(thread):
        if thread.name.startswith("microvm vCPU"):
            started.append(thread)
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(BackendError, match="no thread for vCPU 1"):
        async with machine_on(guest(Spin()), guest(Spin())):
            pass


@asynccontextmanager
async def prelaunched(machine):
    from microvm._assembly import assemble
    from microvm.timeline import BootTimeline

    assembly = assemble(machine.config, machine._plugins, BootTimeline())
    with assembly.platform.prelaunch(assembly.plan):
        yield assembly


async def test_a_guest_launched_before_the_loop_is_taken_over(machine_on, leaves_nothing) -> None:
    first = machine_on(guest(*printed("hello\n"), I8042_RESET))
    async with prelaunched(first) as assembly:
        machine = Machine(first.config, plugins=first._plugins, assembly=assembly)
        outcome = await ending(machine)
    assert outcome.reason is OutcomeReason.RESET
    assert outcome.console_tail == ("hello",)


async def test_a_launch_that_no_machine_takes_over_is_ended(machine_on, leaves_nothing) -> None:
    begun = threading.Event()

    def script(vcpu):
        begun.set()
        yield from stores(*ACCEPT)  # waits for a loop that never comes
        yield Spin()

    machine = machine_on(script, devices=[UPPER])
    with trio.fail_after(WITHIN_S):
        async with prelaunched(machine):
            begun.wait(WITHIN_S)
            await trio.sleep(0.05)
    assert machine.hypervisor.vms[0].closed
