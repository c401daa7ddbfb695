"""Memory that comes, goes and is shared between host and guest."""

from __future__ import annotations

import gc

import pytest

from microvm.errors import HypervisorCallError
from microvm.exits import MmioRead, MmioWrite
from microvm.memory import GuestMemory, GuestRegion
from microvm.testing.hypervisor_contract import guests
from microvm.testing.hypervisor_contract.guests import DEVICE, PORT
from microvm.testing.hypervisor_contract.machine import BYTES, HypervisorUnderTest


class MappedMemory(HypervisorUnderTest):
    """See `HypervisorContract`, which authors subclass."""

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
            for value in BYTES:
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


def _region_nobody_holds() -> GuestRegion:
    memory = GuestMemory.anonymous(0x1000, DEVICE)
    memory.write(DEVICE, b"\x99")
    return memory.regions[0]
