"""The contract, one test a behaviour."""

from __future__ import annotations

import gc
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

import attrs
import pytest
import trio

from microvm.arch.x86_64.registers import (
    GENERAL_REGISTERS,
    RFLAGS_RESERVED,
    DescriptorTable,
    Segment,
)
from microvm.errors import HypervisorCallError
from microvm.exits import (
    Halt,
    Interrupted,
    MmioRead,
    MmioWrite,
    PioRead,
    PioWrite,
    Shutdown,
)
from microvm.memory import GuestMemory, GuestRegion
from microvm.testing.census import Census
from microvm.testing.hypervisor_contract import guests
from microvm.testing.hypervisor_contract.guests import CODE, DATA, DEVICE, DONE, PORT
from microvm.testing.hypervisor_contract.machine import (
    BOUND_S,
    ContractMachine,
    contract_machine,
    meanwhile,
)

if TYPE_CHECKING:
    from microvm.abc import GuestDoorbell, Hypervisor
    from microvm.arch.x86_64.registers import RegisterValue

_BYTES: Final = bytes(range(1, 9))


class HypervisorContract(ABC):
    """Subclass it in a test module, with a name that pytest collects."""

    doorbells_exit: ClassVar[bool] = False
    """Whether a store to a doorbell arrives as `MmioWrite`, for want of something better."""

    @abstractmethod
    def hypervisor(self) -> Hypervisor:
        """A hypervisor to try; `pytest.skip` where there is none, with the reason."""

    @contextmanager
    def machine(self, code: bytes, *, vcpu_count: int = 1) -> Iterator[ContractMachine]:
        """A machine that will run `code` in real mode."""
        with contract_machine(self.hypervisor(), code, vcpu_count=vcpu_count) as machine:
            yield machine

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

    # --- ports and memory ------------------------------------------------------------------------

    def test_port_writes_of_every_width_exit_with_their_data(self) -> None:
        with self.machine(guests.WRITE_PORTS) as machine:
            machine.expect(
                PioWrite(PORT, 1, b"\x11"),
                PioWrite(PORT, 2, b"\x22\x11"),
                PioWrite(PORT, 4, b"\x44\x33\x22\x11"),
                PioWrite(0xFFF8, 1, b"\x44"),
            )

    def test_port_reads_of_every_width_exit_and_what_completes_them_reaches_the_guest(
        self,
    ) -> None:
        with self.machine(guests.READ_PORTS) as machine:
            for size, data in ((1, b"\xa1"), (2, b"\xb1\xb2"), (4, b"\xc1\xc2\xc3\xc4")):
                assert machine.run() == PioRead(PORT, size)
                machine.vcpu.complete_read(data)
            machine.write_of(DONE)
            assert machine.memory.read(DATA, 8) == b"\xa1\0\xb1\xb2\xc1\xc2\xc3\xc4"

    def test_memory_writes_of_every_width_exit_with_their_data(self) -> None:
        with self.machine(guests.WRITE_DEVICE) as machine:
            machine.expect(
                MmioWrite(DEVICE + 0x11, b"\x11"),
                MmioWrite(DEVICE + 0x22, b"\x22\x11"),
                MmioWrite(DEVICE + 0x44, b"\x44\x33\x22\x11"),
            )
            machine.write_of(DONE)

    def test_memory_reads_of_every_width_exit_and_what_completes_them_reaches_the_guest(
        self,
    ) -> None:
        with self.machine(guests.READ_DEVICE) as machine:
            for offset, data in ((0x11, b"\xa1"), (0x22, b"\xb1\xb2"), (0x44, b"\xc1\xc2\xc3\xc4")):
                assert machine.run() == MmioRead(DEVICE + offset, len(data))
                machine.vcpu.complete_read(data)
            machine.write_of(DONE)
            assert machine.memory.read(DATA, 8) == b"\xa1\0\xb1\xb2\xc1\xc2\xc3\xc4"

    def test_memory_accesses_of_eight_bytes_in_64_bit_mode_are_one_exit_each(self) -> None:
        with self.machine(guests.DEVICE_64BIT) as machine:
            machine.enter_long_mode()
            machine.expect(
                MmioWrite(DEVICE, bytes.fromhex("8877665544332211")), MmioRead(DEVICE, 8)
            )
            machine.vcpu.complete_read(_BYTES)
            assert machine.write_of(DONE) == _BYTES[0]
            assert machine.memory.read(DATA, 8) == _BYTES

    def test_string_writes_bring_every_element_in_order_however_they_are_split(self) -> None:
        content = bytes(range(3 * guests.STRING_COUNT))
        with self.machine(guests.WRITE_STRINGS) as machine:
            machine.load(content, DATA)
            written = {1: b"", 2: b""}
            while (exit_ := machine.run()) != PioWrite(DONE, 1, b"\0"):
                assert isinstance(exit_, PioWrite)
                assert exit_.port == PORT
                assert not len(exit_.data) % exit_.size
                written[exit_.size] += exit_.data
            assert written == {
                1: content[: guests.STRING_COUNT],
                2: content[guests.STRING_COUNT :],
            }

    def test_string_reads_take_every_element_in_order_however_they_are_split(self) -> None:
        content = bytes(range(1, 1 + 3 * guests.STRING_COUNT))
        with self.machine(guests.READ_STRINGS) as machine:
            given, counts = 0, set()
            while not isinstance(exit_ := machine.run(), PioWrite):
                assert isinstance(exit_, PioRead)
                assert exit_.size == (1 if given < guests.STRING_COUNT else 2)
                counts.add(exit_.count)
                end = given + exit_.size * exit_.count
                machine.vcpu.complete_read(content[given:end])
                given = end
            assert exit_ == PioWrite(DONE, 1, b"\0")
            assert machine.memory.read(DATA, len(content)) == content
            assert given == len(content)

    def test_a_read_is_completed_once_with_as_many_bytes_as_it_asked_for(self) -> None:
        with self.machine(guests.ECHO) as machine:
            vcpu = machine.vcpu
            with pytest.raises(ValueError):
                vcpu.complete_read(b"x")
            assert machine.run() == PioRead(PORT, 1)
            for wrong in (b"", b"xy"):
                with pytest.raises(ValueError):
                    vcpu.complete_read(wrong)
            vcpu.complete_read(b"x")
            with pytest.raises(ValueError):
                vcpu.complete_read(b"x")
            assert machine.run() == PioWrite(DONE, 1, b"x")
            with pytest.raises(ValueError):
                vcpu.complete_read(b"x")

    # --- the ends --------------------------------------------------------------------------------

    def test_a_triple_fault_is_a_shutdown(self) -> None:
        with self.machine(guests.TRIPLE_FAULT_32BIT) as machine:
            machine.enter_protected_mode()
            assert machine.run() == Shutdown()

    def test_a_halt_with_interrupts_off_is_for_good(self) -> None:
        with self.machine(guests.HALT) as machine, meanwhile(machine.vcpu.kick):
            assert machine.run_once() in (Interrupted(), Halt())
            assert machine.vcpu.is_halted_for_good()

    def test_a_halt_with_interrupts_on_is_not(self) -> None:
        with self.machine(guests.HALT_WITH_INTERRUPTS) as machine, meanwhile(machine.vcpu.kick):
            assert machine.run_once() in (Interrupted(), Halt())
            assert not machine.vcpu.is_halted_for_good()

    def test_a_cpu_that_spins_or_has_not_begun_has_not_halted(self) -> None:
        with self.machine(guests.SPIN) as machine:
            assert not machine.vcpu.is_halted_for_good()
            with meanwhile(machine.vcpu.kick):
                assert machine.run_once() == Interrupted()
            assert not machine.vcpu.is_halted_for_good()

    # --- kicks -----------------------------------------------------------------------------------

    def test_a_kick_ends_the_run_of_a_guest_that_spins_with_interrupts_off(self) -> None:
        kicked: list[float] = []

        with self.machine(guests.SPIN) as machine:

            def kick() -> None:
                kicked.append(time.monotonic())
                machine.vcpu.kick()

            for _ in range(5):
                with meanwhile(kick, after_s=0.02):
                    assert machine.run_once() == Interrupted()
                assert time.monotonic() - kicked.pop() < 1
            # It really ran, and nothing but the kicks ended it.
            assert machine.vcpu.registers()["rip"] == CODE

    def test_a_kick_before_a_run_ends_it_at_once_and_takes_nothing_from_the_guest(self) -> None:
        with self.machine(guests.COUNT) as machine:
            machine.vcpu.kick()
            assert machine.run_once() == Interrupted()
            assert [machine.write_of(PORT) for _ in range(3)] == [0, 1, 2]

    def test_a_kick_between_a_read_and_the_next_run_loses_no_data(self) -> None:
        with self.machine(guests.ECHO) as machine:
            for byte in _BYTES:
                assert machine.run() == PioRead(PORT, 1)
                machine.vcpu.complete_read(bytes([byte]))
                machine.vcpu.kick()
                assert machine.write_of(DONE) == byte

    def test_a_storm_of_kicks_from_many_threads_loses_no_exit_and_leaves_no_tail(self) -> None:
        over = threading.Event()

        with self.machine(guests.COUNT) as machine:

            def storm() -> None:
                while not over.is_set():
                    machine.vcpu.kick()

            threads = [threading.Thread(target=storm) for _ in range(3)]
            for thread in threads:
                thread.start()
            try:
                count, end = 0, time.monotonic() + 0.3
                while time.monotonic() < end:
                    assert machine.write_of(PORT) == count & 0xFF
                    count += 1
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            assert count > 1
            # Any number of kicks is answered by one return, give or take the one under way.
            late = [isinstance(machine.run_once(), Interrupted) for _ in range(10)]
            assert late.count(True) <= 2

    def test_kicks_at_any_moment_of_a_vcpus_life_do_no_harm(self) -> None:
        over = threading.Event()
        hypervisor = self.hypervisor()
        current: list[ContractMachine] = []

        def storm() -> None:
            while not over.is_set():
                for machine in current:
                    machine.vcpu.kick()

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            for _ in range(20):
                with contract_machine(hypervisor, guests.COUNT) as machine:
                    current[:] = [machine]
                    assert machine.write_of(PORT) == 0
                machine.vcpu.kick()
        finally:
            over.set()
            thread.join()

    # --- memory ----------------------------------------------------------------------------------

    def test_memory_that_is_mapped_and_unmapped_is_there_and_gone(self) -> None:
        extra = GuestMemory.anonymous(0x1000, DEVICE)
        (region,) = extra.regions
        extra.write(DEVICE, b"\x77")
        with self.machine(guests.LOOK_AT_DEVICE) as machine:
            for _ in range(3):
                assert machine.run() == MmioRead(DEVICE, 1)
                machine.vcpu.complete_read(b"\x11")
                assert machine.write_of(PORT) == 0x11
                assert machine.run() == MmioWrite(DEVICE + 1, b"\x11")
                machine.vm.map_memory(region)
                assert [machine.write_of(PORT) for _ in range(2)] == [0x77, 0x77]
                assert extra.read(DEVICE + 1, 1) == b"\x77"
                machine.vm.unmap_memory(region)
                assert machine.run() == MmioWrite(DEVICE + 1, b"\x77")
        extra.release()

    def test_the_guest_sees_what_the_host_writes_and_the_other_way_round(self) -> None:
        extra = GuestMemory.anonymous(0x1000, DEVICE)
        with self.machine(guests.LOOK_AT_DEVICE) as machine:
            machine.vm.map_memory(extra.regions[0])
            for value in _BYTES:
                extra.write(DEVICE, bytes([value]))
                assert machine.write_of(PORT) == value
                assert machine.write_of(PORT) == value
                assert extra.read(DEVICE + 1, 1)[0] == value
        extra.release()

    def test_several_regions_come_and_go_in_any_order(self) -> None:
        with self.machine(guests.LOOK_AT_DEVICE) as machine:
            extras = [GuestMemory.anonymous(0x1000, DEVICE + 0x1000 * i) for i in range(6)]
            regions = [extra.regions[0] for extra in extras]
            for region in regions:
                machine.vm.map_memory(region)
            for region in regions[1::2]:
                machine.vm.unmap_memory(region)
            for region in regions[::-2]:
                machine.vm.map_memory(region)
            for region in regions:
                machine.vm.unmap_memory(region)
            assert machine.run() == MmioRead(DEVICE, 1)
        for extra in extras:
            extra.release()

    def test_memory_that_overlaps_is_refused_and_what_is_not_mapped_cannot_be_unmapped(
        self,
    ) -> None:
        with self.machine(guests.LOOK_AT_DEVICE) as machine:
            (mapped,) = machine.memory.regions
            extra = GuestMemory.anonymous(0x2000, mapped.start + 0x1000)
            with pytest.raises(HypervisorCallError):
                machine.vm.map_memory(extra.regions[0])
            with pytest.raises(ValueError):
                machine.vm.unmap_memory(extra.regions[0])
            extra.release()
            assert machine.run() == MmioRead(DEVICE, 1)

    def test_the_vm_keeps_its_memory_alive_when_nobody_else_does(self) -> None:
        with self.machine(guests.LOOK_AT_DEVICE) as machine:
            machine.vm.map_memory(_region_nobody_holds())
            gc.collect()
            # What would be unmapped may be mapped anew, and hold this.
            others = [GuestMemory.anonymous(0x1000) for _ in range(8)]
            for other in others:
                other.write(0, b"\xee")
            assert machine.write_of(PORT) == 0x99
            for other in others:
                other.release()

    # --- signals ---------------------------------------------------------------------------------

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


def _region_nobody_holds() -> GuestRegion:
    memory = GuestMemory.anonymous(0x1000, DEVICE)
    memory.write(DEVICE, b"\x99")
    return memory.regions[0]


def _rings(bell: GuestDoorbell) -> bool:
    """Whether a bell has been rung since the last time."""

    async def wait() -> bool:
        with trio.move_on_after(0.05):
            await bell.wait()
            return True
        return False

    return trio.run(wait)
