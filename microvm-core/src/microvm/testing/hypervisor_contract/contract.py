"""The contract, one test a behaviour.

What guests exit by is in `.exits`, kicks are in `.kicks`, memory in `.mapping`, doorbells and
interrupt lines in `.signals`; the hypervisor itself, registers, and what is left, here.
"""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import attrs
import pytest

from microvm.arch.x86_64.registers import (
    GENERAL_REGISTERS,
    RFLAGS_RESERVED,
    DescriptorTable,
    Segment,
)
from microvm.exits import PioRead
from microvm.memory import GuestMemory
from microvm.testing.census import Census
from microvm.testing.hypervisor_contract import guests
from microvm.testing.hypervisor_contract.exits import Exits
from microvm.testing.hypervisor_contract.guests import DEVICE, PORT
from microvm.testing.hypervisor_contract.kicks import Kicks
from microvm.testing.hypervisor_contract.machine import contract_machine
from microvm.testing.hypervisor_contract.mapping import MappedMemory
from microvm.testing.hypervisor_contract.signals import Signals

if TYPE_CHECKING:
    from microvm.arch.x86_64.registers import RegisterValue


class HypervisorContract(Signals, MappedMemory, Kicks, Exits):
    """Subclass it in a test module, with a name that pytest collects."""

    # --- the hypervisor --------------------------------------------------------------------------

    def test_it_names_its_architecture_and_has_a_vcpu_at_least(self) -> None:
        hypervisor = self.hypervisor()
        assert hypervisor.arch == "x86_64"
        assert hypervisor.max_vcpu_count >= 1

    def test_two_vms_of_one_hypervisor_do_not_meet(self) -> None:
        hypervisor = self.hypervisor()
        with (
            contract_machine(hypervisor, guests.COUNT) as first,
            contract_machine(hypervisor, guests.ECHO) as second,
        ):
            assert first.write_of(PORT) == 0
            assert second.run() == PioRead(PORT, 1)
            assert first.write_of(PORT) == 1

    # --- registers -------------------------------------------------------------------------------

    def test_registers_that_are_set_are_read_back_and_the_others_stay(self) -> None:
        with self.machine(guests.HALT) as machine:
            before = machine.vcpu.registers()
            changed: dict[str, RegisterValue] = {
                name: 0x1111_2222_0000_0000 + number
                for number, name in enumerate(GENERAL_REGISTERS)
                if name != "rflags"
            }
            changed["rflags"] = RFLAGS_RESERVED | 1
            segment = before["fs"]
            assert isinstance(segment, Segment)
            others: dict[str, RegisterValue] = {
                "fs": attrs.evolve(segment, selector=0x1237, base=0x12340, dpl=3),
                "idt": DescriptorTable(base=0x4000, limit=0x1FF),
                "cr2": 0x5000,
                "cr3": 0x6000,
            }
            machine.vcpu.set_registers({**changed, **others})
            assert dict(machine.vcpu.registers()) == {**before, **changed, **others}

    def test_a_name_that_is_no_register_is_refused_and_nothing_is_set(self) -> None:
        with self.machine(guests.HALT) as machine:
            before = machine.vcpu.registers()
            for wrong in ("eax", "RAX", "x0", ""):
                with pytest.raises(ValueError):
                    machine.vcpu.set_registers({"rbx": 7, "cr3": 0x6000, wrong: 1})
            assert machine.vcpu.registers() == before

    def test_registers_that_are_set_are_what_the_guest_has(self) -> None:
        with self.machine(guests.COUNT) as machine:
            machine.vcpu.set_registers({"rax": 0x41})
            assert machine.write_of(PORT) == 0x41
            assert machine.write_of(PORT) == 0x42

    def test_the_code_where_a_cpu_stands_can_be_read_for_error_messages(self) -> None:
        with self.machine(guests.SPIN) as machine:
            code = machine.vcpu.code_at_instruction_pointer()
            assert code == guests.SPIN + bytes(14)
            machine.vcpu.set_registers({"rip": 0x7FFF_0000})
            assert machine.vcpu.code_at_instruction_pointer() == b""

    # --- ends and beginnings ---------------------------------------------------------------------

    def test_a_guest_goes_on_after_a_pause_that_its_clock_was_told_of(self) -> None:
        with self.machine(guests.COUNT) as machine:
            assert machine.write_of(PORT) == 0
            machine.vcpu.kick()
            machine.run_once()
            machine.vcpu.prepare_resume()
            assert machine.write_of(PORT) == 1

    def test_closing_twice_is_allowed_and_a_kick_after_it_does_nothing(self) -> None:
        with self.machine(guests.SPIN) as machine:
            machine.vcpu.kick()
            machine.vcpu.close()
            machine.vcpu.kick()
            machine.vcpu.close()
            machine.vm.close()
            machine.vm.close()

    def test_nothing_is_left_of_a_machine(self) -> None:
        # The first of all may leave what is kept for the next, such as an open library.
        self._use_everything()
        gc.collect()
        before = Census.take()
        for _ in range(3):
            self._use_everything()
        gc.collect()
        assert Census.take() == before

    def _use_everything(self) -> None:
        extra = GuestMemory.anonymous(0x1000, DEVICE)
        with self.machine(guests.COUNT, vcpu_count=2) as machine:
            machine.vm.map_memory(extra.regions[0])
            machine.vm.irq_line(5).trigger()
            machine.vm.doorbell(DEVICE + 0x1000, 0).ring()
            thread = threading.Thread(target=lambda: machine.vm.create_vcpu(1).close())
            thread.start()
            thread.join()
            machine.write_of(PORT)
        extra.release()
