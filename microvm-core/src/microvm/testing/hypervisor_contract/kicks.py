"""Kicks: at any moment, from any thread, and nothing is lost by them."""

from __future__ import annotations

import threading
import time

from microvm.exits import Interrupted, PioRead
from microvm.testing.hypervisor_contract import guests
from microvm.testing.hypervisor_contract.guests import CODE, DONE, PORT
from microvm.testing.hypervisor_contract.machine import (
    BYTES,
    ContractMachine,
    HypervisorUnderTest,
    contract_machine,
    meanwhile,
)


class Kicks(HypervisorUnderTest):
    """See `HypervisorContract`, which authors subclass."""

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
            for byte in BYTES:
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
