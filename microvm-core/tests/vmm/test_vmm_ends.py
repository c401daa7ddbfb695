"""How machines end, by their guests or by their host, and what is known of it afterwards."""

import threading
from functools import partial

import pytest
import trio

from microvm import OutcomeReason
from microvm.arch.x86_64 import layout
from microvm.errors import HypervisorCallError
from microvm.exits import (
    FailEntry,
    InternalError,
    MmioRead,
    PioWrite,
    Shutdown,
    SystemEvent,
    UnknownExit,
)
from microvm.testing.hypervisor import Spin

from .scripted_machine import (
    ACCEPT,
    DRIVER_OK,
    I8042_RESET,
    UPPER,
    WITHIN_S,
    ending,
    guest,
    printed,
    stores,
)

S5 = layout.ACPI_S5_SLP_TYP << 2 | 0x20

ENDS = {
    "the keyboard controller": ([I8042_RESET], OutcomeReason.RESET),
    "the chipset's reset": ([PioWrite(0xCF9, 1, b"\x06")], OutcomeReason.RESET),
    "ACPI's reset": ([PioWrite(layout.ACPI_PM + 2, 1, b"\x01")], OutcomeReason.RESET),
    "ACPI's S5": ([PioWrite(layout.ACPI_PM, 1, bytes((S5,)))], OutcomeReason.POWERED_OFF),
    "the hypervisor's shutdown": ([SystemEvent("shutdown")], OutcomeReason.POWERED_OFF),
    "the hypervisor's reset": ([SystemEvent("reset")], OutcomeReason.RESET),
    "a triple fault": ([Shutdown()], OutcomeReason.TRIPLE_FAULT),
    "an internal error": ([InternalError(1, "emulation failed")], OutcomeReason.INTERNAL_ERROR),
    "a refused entry": ([FailEntry(0x80000021)], OutcomeReason.INTERNAL_ERROR),
    "an unknown exit": ([UnknownExit(77)], OutcomeReason.INTERNAL_ERROR),
    "halted for good": ([], OutcomeReason.HALTED),
    "halted as the kernel said": (printed("reboot: System halted\n"), OutcomeReason.POWERED_OFF),
    "a panic that resets": (
        [*printed("Kernel panic - not syncing: why not\n"), I8042_RESET],
        OutcomeReason.PANIC,
    ),
    "a panic that hangs": (
        [
            *printed("Kernel panic - not syncing: why not\n"),
            *printed("---[ end Kernel panic - not syncing: why not ]---\n"),
            Spin(),
        ],
        OutcomeReason.PANIC,
    ),
}


@pytest.mark.parametrize(("steps", "reason"), ENDS.values(), ids=ENDS)
async def test_each_end_is_told_apart(machine_on, leaves_nothing, steps, reason) -> None:
    """Row 95."""
    outcome = await ending(machine_on(guest(*steps)))
    assert outcome.reason is reason, outcome.detail


async def test_a_panics_words_and_the_last_lines_are_in_the_outcome(machine_on) -> None:
    outcome = await ending(machine_on(guest(*ENDS["a panic that resets"][0])))
    assert outcome.detail == "The guest's kernel panicked: Kernel panic - not syncing: why not"
    assert outcome.console_tail == ("Kernel panic - not syncing: why not",)


@pytest.mark.parametrize("steps", [[Shutdown()], [InternalError(1, "emulation failed")]])
async def test_a_cpu_that_can_not_go_on_leaves_registers_and_code(machine_on, steps) -> None:
    """Row 96."""
    outcome = await ending(machine_on(guest(*steps)))
    assert outcome.cpu_state[0] == "vCPU 0:"
    assert any("rip=" in line for line in outcome.cpu_state)
    assert outcome.cpu_state[-1] == "code: f4"


async def test_a_guest_that_spins_is_stopped(machine_on, leaves_nothing) -> None:
    """Row 95."""
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin())) as machine:
            outcome = await machine.stop()
    assert outcome.reason is OutcomeReason.STOPPED


async def test_cancelling_the_scope_ends_every_vcpu(machine_on, leaves_nothing) -> None:
    machine = machine_on(*[guest(Spin())] * 4)
    with trio.move_on_after(0.05):
        async with machine:
            await trio.sleep_forever()
    assert machine.outcome.reason is OutcomeReason.STOPPED


async def test_every_end_of_one_vcpu_ends_the_others(machine_on, leaves_nothing) -> None:
    """Row 96."""
    outcome = await ending(machine_on(guest(Spin()), guest(Shutdown()), guest(Spin())))
    assert outcome.reason is OutcomeReason.TRIPLE_FAULT
    assert outcome.cpu_state[0] == "vCPU 1:"


@pytest.mark.parametrize("dumb", [0, 1])
async def test_a_vcpu_that_can_not_be_kicked_at_first_is_stopped_all_the_same(
    machine_on, leaves_nothing, dumb
) -> None:
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin()), guest(Spin())) as machine:
            vcpus = machine.hypervisor.vms[0].vcpus
            kick, tries = vcpus[dumb].kick, []

            def no_signal_left() -> None:
                tries.append(None)
                if len(tries) < 3:
                    raise HypervisorCallError("pthread_kill", 11)
                kick()

            vcpus[dumb].kick = no_signal_left
            assert (await machine.stop()).reason is OutcomeReason.STOPPED
    while "microvm insists" in [thread.name for thread in threading.enumerate()]:  # noqa: ASYNC110
        await trio.sleep(0.001)


async def test_vcpus_that_were_never_started_do_not_keep_a_halted_machine(machine_on) -> None:
    outcome = await ending(machine_on(guest(), vcpu_count=3))
    assert outcome.reason is OutcomeReason.HALTED


async def test_a_failing_call_on_the_exit_path_is_a_crash_with_the_calls_name(machine_on) -> None:
    """Row 96."""

    def script(vcpu):
        yield PioWrite(0x80, 1, b"\0")
        raise HypervisorCallError("KVM_RUN", 14)

    outcome = await ending(machine_on(script, guest(Spin())))
    assert outcome.reason is OutcomeReason.CRASHED
    assert "KVM_RUN failed: Bad address" in outcome.detail
    assert outcome.cpu_state[0] == "vCPU 0:"


async def test_a_bug_in_a_bus_device_ends_the_machine_in_words(machine_on, caplog) -> None:
    """Row 96."""
    machine = machine_on(guest(MmioRead(layout.virtio_mmio_base(0) + 0x100, 4)), devices=[UPPER])

    def broken(offset, length):
        raise ZeroDivisionError("of course")

    machine.upper.read_config = broken
    outcome = await ending(machine)
    assert outcome.reason is OutcomeReason.CRASHED
    assert "ZeroDivisionError: of course" in outcome.detail


async def test_a_devices_own_bug_ends_the_machine_and_comes_out_as_it_is(
    machine_on, leaves_nothing
) -> None:
    """Row 96."""
    machine = machine_on(guest(*stores(*ACCEPT, DRIVER_OK), Spin()), devices=[UPPER])

    async def broken(activation):
        raise ZeroDivisionError

    machine.upper.run = broken
    with trio.fail_after(WITHIN_S), pytest.raises(ZeroDivisionError):
        async with machine:
            await trio.sleep_forever()


async def test_twenty_machines_at_once_end_on_their_own(machine_on, leaves_nothing) -> None:
    """Row 100."""
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            machine = machine_on(guest(*printed("hello\n"), I8042_RESET))
            nursery.start_soon(partial(ending, machine))
