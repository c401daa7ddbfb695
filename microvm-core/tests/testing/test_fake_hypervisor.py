"""The scripted hypervisor: what a script says is what an engine sees."""

import threading
import time
from collections.abc import Callable

import pytest
import trio

from microvm.errors import HypervisorCallError
from microvm.exits import Interrupted, MmioRead, MmioWrite, PioRead, PioWrite, Shutdown
from microvm.memory import GuestMemory
from microvm.testing.hypervisor import (
    AwaitIrq,
    FakeHypervisor,
    FakeVcpu,
    FakeVm,
    Script,
    Spin,
    Store,
)

BELL = 0xD000_0050


def made(*scripts: Callable[[FakeVcpu], Script], **options: bool) -> tuple[FakeVm, FakeVcpu]:
    vm = FakeHypervisor(*scripts, **options).create_vm(vcpu_count=2)
    return vm, vm.create_vcpu(0)


def kicked_soon(vcpu: FakeVcpu) -> threading.Thread:
    thread = threading.Thread(target=lambda: (time.sleep(0.05), vcpu.kick()))
    thread.start()
    return thread


def test_reads_reach_the_script_and_exits_come_in_order() -> None:
    def echo(vcpu: FakeVcpu) -> Script:
        data = yield MmioRead(0x1000, 2)
        data += yield PioRead(0x60, 1, count=3)
        yield PioWrite(0xE9, 1, data)
        yield Shutdown()

    _, vcpu = made(echo)
    assert vcpu.run() == MmioRead(0x1000, 2)
    vcpu.complete_read(b"ab")
    assert vcpu.run() == PioRead(0x60, 1, 3)
    vcpu.complete_read(b"cde")
    assert vcpu.run() == PioWrite(0xE9, 1, b"abcde")
    assert vcpu.run() == Shutdown()


def test_a_call_of_a_vm_during_another_is_the_callers_fault() -> None:
    def asks_at_once(vcpu: FakeVcpu) -> Script:
        vcpu.vm.irq_line(5)
        raise NotImplementedError

    vm = FakeHypervisor(asks_at_once).create_vm(vcpu_count=1)
    with pytest.raises(AssertionError, match="another call is under way"):
        vm.create_vcpu(0)
    vm.irq_line(5)


def test_a_read_that_is_not_completed_is_the_callers_fault() -> None:
    def reads(vcpu: FakeVcpu) -> Script:
        yield MmioRead(0x1000, 2)

    _, vcpu = made(reads)
    with pytest.raises(ValueError, match="1 bytes for a read of 0"):
        vcpu.complete_read(b"x")
    vcpu.run()
    with pytest.raises(ValueError, match="1 bytes for a read of 2"):
        vcpu.complete_read(b"x")
    with pytest.raises(AssertionError, match="not completed"):
        vcpu.run()


def test_a_kick_before_or_during_a_run_ends_it_once() -> None:
    def spins(vcpu: FakeVcpu) -> Script:
        yield Spin()

    _, vcpu = made(spins)
    vcpu.kick()
    vcpu.kick()
    assert vcpu.run() == Interrupted()
    thread = kicked_soon(vcpu)
    assert vcpu.run() == Interrupted()
    thread.join()
    assert not vcpu.is_halted_for_good()
    assert (vcpu.kicks, vcpu.runs) == (3, 2)


def test_a_kick_between_a_read_and_the_next_run_loses_no_data() -> None:
    def echo(vcpu: FakeVcpu) -> Script:
        yield PioWrite(0xE9, 1, (yield PioRead(0x60, 1)))

    _, vcpu = made(echo)
    vcpu.run()
    vcpu.complete_read(b"x")
    vcpu.kick()
    assert vcpu.run() == Interrupted()
    assert vcpu.run() == PioWrite(0xE9, 1, b"x")


def test_a_script_that_ends_has_halted_for_good_and_so_has_one_that_was_never_there() -> None:
    def ends(vcpu: FakeVcpu) -> Script:
        yield from ()

    vm, boot = made(ends)
    other = vm.create_vcpu(1)
    for vcpu in (boot, other):
        thread = kicked_soon(vcpu)
        assert vcpu.run() == Interrupted()
        thread.join()
    assert boot.is_halted_for_good()
    assert other.is_halted_for_good()


def test_an_interrupt_wakes_a_script_from_another_thread_and_a_kick_in_between_loses_none() -> None:
    def waits(vcpu: FakeVcpu) -> Script:
        yield AwaitIrq(5)
        yield Shutdown()

    vm, vcpu = made(waits)
    thread = kicked_soon(vcpu)
    assert vcpu.run() == Interrupted()
    thread.join()
    thread = threading.Thread(target=lambda: (time.sleep(0.05), vm.irq_line(5).trigger()))
    thread.start()
    assert vcpu.run() == Shutdown()
    thread.join()
    assert vm.lines[5].triggers == 1


async def test_a_store_rings_its_doorbell_without_an_exit() -> None:
    def stores(vcpu: FakeVcpu) -> Script:
        yield Store(BELL, 1)
        yield Store(BELL, 0)

    vm = FakeHypervisor(stores).create_vm(vcpu_count=1)
    bell = vm.doorbell(BELL, 1)

    def vcpu_thread() -> None:
        vcpu = vm.create_vcpu(0)
        assert vcpu.run() == MmioWrite(BELL, bytes(4))
        vcpu.close()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, vcpu_thread)
            await bell.wait()
    assert bell.rings == 1
    vm.close()


def test_a_hypervisor_that_cannot_ring_lets_the_store_exit() -> None:
    def stores(vcpu: FakeVcpu) -> Script:
        yield Store(BELL, 1)

    vm, vcpu = made(stores, doorbells_exit=True)
    vm.doorbell(BELL, 1)
    assert vcpu.run() == MmioWrite(BELL, b"\1\0\0\0")


def test_what_a_script_raises_comes_out_of_run() -> None:
    def fails(vcpu: FakeVcpu) -> Script:
        yield PioRead(0x60, 1)
        raise HypervisorCallError("KVM_RUN", 14)

    _, vcpu = made(fails)
    vcpu.run()
    vcpu.complete_read(b"x")
    with pytest.raises(HypervisorCallError, match="KVM_RUN"):
        vcpu.run()


def test_memory_that_overlaps_is_refused_and_what_is_not_mapped_cannot_be_unmapped() -> None:
    vm, _ = made()
    (region,) = GuestMemory.anonymous(4096).regions
    vm.map_memory(region)
    with pytest.raises(HypervisorCallError):
        vm.map_memory(region)
    vm.unmap_memory(region)
    with pytest.raises(ValueError):
        vm.unmap_memory(region)


def test_a_vcpu_belongs_to_its_thread_and_closes_before_its_vm() -> None:
    vm, vcpu = made()
    seen: list[str] = []

    def elsewhere() -> None:
        vcpu.kick()
        try:
            vcpu.registers()
        except AssertionError as error:
            seen.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["Used on another thread than its own."]
    with pytest.raises(AssertionError, match="still open"):
        vm.close()
    vcpu.close()
    vm.close()


def test_registers_are_kept_and_a_wrong_name_is_refused_whole() -> None:
    _, vcpu = made()
    vcpu.set_registers({"rip": 0x1000})
    with pytest.raises(ValueError, match="eip"):
        vcpu.set_registers({"rax": 1, "eip": 0})
    assert (vcpu.registers()["rip"], vcpu.registers()["rax"]) == (0x1000, 0)


def test_a_call_fails_where_a_test_wants_it_to() -> None:
    hypervisor = FakeHypervisor()
    hypervisor.failures["create_vcpu"] = HypervisorCallError("KVM_CREATE_VCPU", 12)
    vm = hypervisor.create_vm(vcpu_count=1)
    with pytest.raises(HypervisorCallError, match="KVM_CREATE_VCPU"):
        vm.create_vcpu(0)
