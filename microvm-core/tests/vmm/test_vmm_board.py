"""What a guest finds on its board: memory, devices, absent places; and what of it is counted."""

import pytest
import trio

from microvm import ConfigError
from microvm.arch.x86_64 import layout
from microvm.exits import MmioRead, MmioWrite, PioRead, PioWrite
from microvm.testing.hypervisor import FakeHypervisor, Spin

from .scripted_machine import (
    ACCEPT,
    DRIVER_OK,
    I8042_RESET,
    QUEUE,
    RESET,
    UPPER,
    WITHIN_S,
    ending,
    guest,
    stores,
)


async def test_reads_are_answered_by_width_and_absent_places_read_all_ones(machine_on) -> None:
    seen = []

    def script(vcpu):
        seen.append((yield MmioRead(layout.virtio_mmio_base(0), 4)))
        seen.append((yield MmioRead(0xC800_0000, 8)))
        seen.append((yield PioRead(0x1234, 2)))
        seen.append((yield PioRead(0x3FD, 1, 3)))
        yield MmioWrite(0xC800_0000, b"\1\2\3\4")
        yield I8042_RESET

    machine = machine_on(script, devices=[UPPER])
    await ending(machine)
    assert seen == [b"virt", b"\xff" * 8, b"\xff" * 2, b"\x60" * 3]


async def test_a_device_is_served_over_the_bus_and_interrupts_by_its_line(machine_on) -> None:
    def script(vcpu):
        yield from stores(RESET, *ACCEPT, *QUEUE, DRIVER_OK)
        status = yield MmioRead(layout.virtio_mmio_base(0) + 0x70, 4)
        assert status == b"\x0f\0\0\0"
        yield Spin()

    machine = machine_on(script, devices=[UPPER])
    with trio.fail_after(WITHIN_S):
        async with machine:
            await machine.upper.until("run")
    assert machine.upper.diary == ["reset", "run", "end", "reset"]


async def test_eighteen_devices_have_an_address_and_an_interrupt_each(machine_on) -> None:
    """Row 81: the last number that works."""
    async with machine_on(guest(Spin()), devices=[UPPER] * 18) as machine:
        (vm,) = machine.hypervisor.vms
        assert len(vm.bells) == 18
        assert set(vm.lines) == {4, *layout.VIRTIO_GSIS}


async def test_memory_beyond_3_gib_goes_behind_the_hole(machine_on) -> None:
    """Row 81."""
    async with machine_on(guest(Spin()), mem_size_mib=3 * 1024 + 64) as machine:
        (vm,) = machine.hypervisor.vms
        spans = [(region.start, region.end) for region in vm.regions]
    assert spans == [(0, 0xC000_0000), (0x1_0000_0000, 0x1_0400_0000)]


async def test_a_machine_has_no_more_vcpus_than_apic_ids_whatever_its_hypervisor_says(
    machine_on,
) -> None:
    """Row 81."""
    hypervisor = FakeHypervisor(max_vcpu_count=1024)
    with pytest.raises(ConfigError, match="may have 254, not 255"):
        async with machine_on(hypervisor=hypervisor, vcpu_count=255):
            pass


def test_everything_that_the_board_can_not_hold_is_told_at_once(machine_on) -> None:
    """Row 81."""

    async def start():
        async with machine_on(
            guest(),
            vcpu_count=200,
            mem_size_mib=1 << 20,
            devices=[UPPER] * 19,
        ):
            pass

    with pytest.raises(ConfigError) as caught:
        trio.run(start)
    assert {problem.where for problem in caught.value.problems} == {
        "devices",
        "vcpu_count",
        "mem_size_mib",
    }


async def test_what_a_guest_writes_to_the_boot_timer_is_a_phase_of_its_boot(machine_on) -> None:
    marks = [MmioWrite(layout.BOOT_TIMER, b"\x07"), MmioWrite(layout.BOOT_TIMER, b"\x7b")]
    machine = machine_on(guest(*marks, I8042_RESET))
    await ending(machine)
    phases = list(machine.timing)
    assert phases.index("boot_timer_7") + 1 == phases.index("boot_timer_123")
    assert phases.index("vcpus") < phases.index("boot_timer_7")
    assert all(ms >= 0 for ms in machine.timing.values())


async def test_exits_are_counted_by_kind_and_address(machine_on) -> None:
    machine = machine_on(guest(*[PioRead(0x71, 1)] * 3, PioWrite(0x80, 1, b"\0"), I8042_RESET))
    await ending(machine)
    assert dict(machine.exit_counts) == {
        "pio-read 0x71": 3,
        "pio-write 0x80": 1,
        "pio-write 0x64": 1,
    }


async def test_a_guest_that_touches_every_address_does_not_fill_the_host(machine_on) -> None:
    def script(vcpu):
        for address in range(0xC000_0000, 0xC000_0000 + 4 * 5000, 4):
            yield MmioRead(address, 4)
        yield I8042_RESET

    machine = machine_on(script)
    await ending(machine)
    assert sum(machine.exit_counts.values()) == 5001
    assert len(machine.exit_counts) <= 1024
    assert machine.exit_counts["elsewhere"] == 5001 - 1023


async def test_devices_are_counted_by_name_and_number(machine_on) -> None:
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin()), devices=[UPPER]) as machine:
            assert machine.metrics.devices == {"upper0": {"notifications": 0, "interrupts": 0}}
