"""Doorbells, interrupt lines, and the signals by which one vCPU starts another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from microvm.exits import Interrupted, MmioWrite, PioWrite
from microvm.testing.hypervisor_contract import guests
from microvm.testing.hypervisor_contract.guests import DEVICE, DONE, PORT
from microvm.testing.hypervisor_contract.machine import (
    BOUND_S,
    ContractMachine,
    HypervisorUnderTest,
    meanwhile,
)

if TYPE_CHECKING:
    from microvm.abc import GuestDoorbell


class Signals(HypervisorUnderTest):
    """See `HypervisorContract`, which authors subclass."""

    # --- doorbells and interrupt lines -----------------------------------------------------------

    def test_a_store_of_its_value_rings_a_doorbell_and_other_stores_exit(self) -> None:
        with self.machine(guests.RING) as machine:
            bell = machine.vm.doorbell(DEVICE + 0x50, 3)
            assert not _rings(bell)
            if self.doorbells_exit:
                assert machine.run() == MmioWrite(DEVICE + 0x50, b"\3\0\0\0")
                bell.ring()
            assert machine.run() == MmioWrite(DEVICE + 0x50, b"\4\0\0\0")
            assert _rings(bell)
            assert machine.run() == MmioWrite(DEVICE + 0x50, b"\3\0")
            assert machine.run() == MmioWrite(DEVICE + 0x54, b"\3\0\0\0")
            machine.write_of(DONE)
            assert not _rings(bell)

    def test_two_doorbells_at_one_address_are_told_apart_by_value(self) -> None:
        with self.machine(guests.RING) as machine:
            bells = {value: machine.vm.doorbell(DEVICE + 0x50, value) for value in (3, 4)}
            if self.doorbells_exit:
                for value, bell in bells.items():
                    assert machine.run() == MmioWrite(DEVICE + 0x50, bytes([value, 0, 0, 0]))
                    bell.ring()
            assert machine.run() == MmioWrite(DEVICE + 0x50, b"\3\0")
            assert [_rings(bell) for bell in bells.values()] == [True, True]

    def test_a_doorbell_can_be_rung_by_hand_from_any_thread(self) -> None:
        with self.machine(guests.RING) as machine:
            bell = machine.vm.doorbell(DEVICE + 0x50, 3)

            async def wait() -> None:
                with trio.fail_after(BOUND_S), meanwhile(bell.ring):
                    await bell.wait()

            trio.run(wait)
            bell.ring()
            bell.ring()
            assert _rings(bell)
            assert not _rings(bell)

    def test_a_triggered_line_interrupts_the_guest_also_one_that_has_halted(self) -> None:
        with self._with_interrupts() as machine:
            lines = {gsi: machine.vm.irq_line(gsi) for gsi in (5, 11)}
            assert machine.write_of(PORT) == 0
            for gsi in (5, 11, 11, 5):
                with meanwhile(lines[gsi].trigger):
                    assert machine.write_of(PORT) == gsi
            assert not machine.vcpu.is_halted_for_good()

    def test_a_line_triggered_before_the_guest_takes_interrupts_is_not_forgotten(self) -> None:
        with self._with_interrupts() as machine:
            line = machine.vm.irq_line(5)
            assert machine.write_of(PORT) == 0
            line.trigger()
            line.trigger()
            assert machine.write_of(PORT) == 5

    def test_a_line_is_triggered_from_many_threads_and_each_round_arrives(self) -> None:
        with self._with_interrupts() as machine:
            line = machine.vm.irq_line(5)
            assert machine.write_of(PORT) == 0
            for _ in range(20):
                with meanwhile(line.trigger, after_s=0), meanwhile(line.trigger, after_s=0):
                    assert machine.write_of(PORT) == 5

    @contextmanager
    def _with_interrupts(self) -> Iterator[ContractMachine]:
        with self.machine(guests.INTERRUPTS) as machine:
            machine.load(guests.INTERRUPT_5, guests.HANDLER_5)
            machine.load(guests.INTERRUPT_11, guests.HANDLER_11)
            for gsi, handler in ((5, guests.HANDLER_5), (11, guests.HANDLER_11)):
                # Real mode's vector table: offset and segment, 4 bytes each, from address 0.
                vector = 4 * (guests.MASTER_VECTOR + gsi)
                machine.load(handler.to_bytes(4, "little"), vector)
            yield machine

    # --- two vCPUs -------------------------------------------------------------------------------

    def test_another_vcpu_waits_in_its_run_until_the_first_starts_it(self) -> None:
        said: list[object] = []

        with self.machine(guests.START_OTHER_CPU_32BIT, vcpu_count=2) as machine:
            machine.load(guests.OTHER_CPU, guests.OTHER_CPU_CODE)
            machine.enter_protected_mode()
            created, started = threading.Event(), threading.Event()

            def other_thread() -> None:
                vcpu = machine.vm.create_vcpu(1)
                guard = threading.Timer(BOUND_S, vcpu.kick)
                guard.start()
                try:
                    vcpu.kick()
                    said.append(vcpu.run())
                    said.append(vcpu.is_halted_for_good())
                    created.set()
                    while isinstance(exit_ := vcpu.run(), Interrupted) and guard.is_alive():
                        pass
                    said.extend((started.is_set(), exit_))
                finally:
                    guard.cancel()
                    guard.join()
                    vcpu.close()

            thread = threading.Thread(target=other_thread)
            thread.start()
            try:
                assert created.wait(BOUND_S)
                time.sleep(0.05)
                assert len(said) == 2, "It ran before it was started."
                started.set()
                assert machine.write_of(PORT) == 0
            finally:
                thread.join()
            assert said == [Interrupted(), True, True, PioWrite(PORT, 1, b"\1")]


def _rings(bell: GuestDoorbell) -> bool:
    """Whether a bell has been rung since the last time."""

    async def wait() -> bool:
        with trio.move_on_after(0.05):
            await bell.wait()
            return True
        return False

    return trio.run(wait)
