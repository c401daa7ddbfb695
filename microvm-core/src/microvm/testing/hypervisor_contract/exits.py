"""What a guest does to ports and memory, and how it ends: exits, and what completes them."""

from __future__ import annotations

import pytest

from microvm.exits import Halt, Interrupted, MmioRead, MmioWrite, PioRead, PioWrite, Shutdown
from microvm.testing.hypervisor_contract import guests
from microvm.testing.hypervisor_contract.guests import DATA, DEVICE, DONE, PORT
from microvm.testing.hypervisor_contract.machine import BYTES, HypervisorUnderTest, meanwhile


class Exits(HypervisorUnderTest):
    """See `HypervisorContract`, which authors subclass."""

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
            machine.vcpu.complete_read(BYTES)
            assert machine.write_of(DONE) == BYTES[0]
            assert machine.memory.read(DATA, 8) == BYTES

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
