"""VMs and vCPUs at the border to the kernel: what is refused, what fails, and what is left then."""

import errno
import fcntl
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from microvm.errors import BackendError, HypervisorCallError, MicrovmError
from microvm.exits import Interrupted, PioWrite
from microvm.memory import GuestMemory
from microvm.testing.census import Census, nothing_grows
from microvm.testing.hypervisor_contract import guests
from microvm.testing.hypervisor_contract.machine import contract_machine
from microvm_kvm._abi import KernelCalls, constants, ffi, ioctls
from microvm_kvm._facts import open_kvm, read_facts
from microvm_kvm._kvm import KvmHypervisor

pytestmark = pytest.mark.kvm


class FailingCalls(KernelCalls):
    """The host's kernel, whose call number `fail_at` fails. `count` tells how many were made."""

    def __init__(self, fail_at: int | None = None, number: int = errno.ENOMEM) -> None:
        self.fail_at = fail_at
        self.number = number
        self.count = 0
        self.names: list[str] = []

    def ioctl(self, fd: int, request: int, argument: Any = 0) -> int:
        name = ioctls.NAMES[request]
        self.names.append(name)
        self.count += 1
        if self.count - 1 == self.fail_at:
            raise HypervisorCallError(name, self.number)
        return super().ioctl(fd, request, argument)


@pytest.fixture(autouse=True)
def real_kvm() -> None:
    try:
        os.close(open_kvm(KernelCalls()))
    except BackendError as error:
        pytest.skip(error.message)


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    gc.collect()
    before = Census.take()
    yield
    gc.collect()
    assert Census.take() == before


def use(hypervisor: KvmHypervisor) -> None:
    """Everything that takes a call."""
    with contract_machine(hypervisor, guests.COUNT) as machine:
        machine.vm.irq_line(5)
        machine.vm.doorbell(0xD000_0050, 0)
        assert machine.write_of(guests.PORT) == 0
        extra = GuestMemory.anonymous(0x1000, 0x10_0000)
        machine.vm.map_memory(extra.regions[0])
        machine.vm.unmap_memory(extra.regions[0])
        extra.release()


def test_whichever_call_fails_it_is_named_and_everything_is_given_back(
    leaves_nothing: None,
) -> None:
    """Row 98."""
    counting = FailingCalls()
    use(KvmHypervisor(counting))
    assert counting.count > 20
    for at in range(counting.count):
        calls = FailingCalls(at)
        with pytest.raises(MicrovmError, match=counting.names[at]):
            use(KvmHypervisor(calls))
        assert calls.names[at] == counting.names[at]


def test_when_descriptors_run_out_at_any_moment_everything_is_given_back(
    leaves_nothing: None,
) -> None:
    """Row 98."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    failures = set()
    with open(os.devnull) as probe:
        first_free = probe.fileno()
    for room in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + room, hard))
        try:
            use(KvmHypervisor())
        except MicrovmError as error:
            failures.add(str(error).split()[0])
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert failures == {"/dev/kvm", "KVM_CREATE_VM", "mmap", "eventfd"}


def test_a_call_that_a_signal_interrupts_is_made_again() -> None:
    """Row 97."""
    # KVM_CREATE_VM is one that gives EINTR, when a signal comes while it waits.
    calls = KernelCalls()
    fd = open_kvm(calls)
    hits: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: hits.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            os.close(calls.ioctl(fd, ioctls.KVM_CREATE_VM))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        os.close(fd)
    assert hits


def test_descriptors_are_not_inherited_by_programs() -> None:
    with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
        machine.vm.irq_line(5)
        machine.vm.doorbell(0xD000_0050, 0)
        ours = {
            int(fd): target
            for fd in os.listdir("/proc/self/fd")
            if "kvm" in (target := _target(fd)) or "eventfd" in target
        }
        assert len(ours) >= 4
        for fd, target in ours.items():
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, target


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_a_forked_child_can_neither_run_nor_disturb_the_vm() -> None:
    """Row 99."""
    with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
        assert machine.write_of(guests.PORT) == 0
        child = os.fork()
        if not child:
            code = 99
            try:
                machine.vcpu.run()
            except HypervisorCallError as error:
                code = error.errno
            os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == errno.EIO
        assert machine.write_of(guests.PORT) == 1


def test_the_threads_signal_mask_is_as_it_was_after_close() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
        inside = signal.pthread_sigmask(signal.SIG_BLOCK, set())
        assert inside == before | {signal.SIGRTMIN}
        machine.vcpu.kick()
        machine.vcpu.kick()
    # Had the kick not been taken away, its signal would have ended this process.
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert signal.SIGRTMIN not in signal.sigpending()


def test_a_signal_of_someone_else_ends_a_run_and_is_still_theirs() -> None:
    hits: list[int] = []
    old = signal.signal(signal.SIGUSR2, lambda number, frame: hits.append(number))
    thread = threading.get_ident()
    try:
        with contract_machine(KvmHypervisor(), guests.SPIN) as machine:
            sender = threading.Timer(0.05, lambda: signal.pthread_kill(thread, signal.SIGUSR2))
            sender.start()
            assert machine.run_once() == Interrupted()
            sender.join()
            assert hits == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, old)


def test_a_signal_that_the_thread_had_blocked_does_not_end_a_run() -> None:
    thread = threading.get_ident()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
            signal.pthread_kill(thread, signal.SIGUSR2)
            assert machine.run_once() == PioWrite(guests.PORT, 1, b"\0")
        assert signal.sigtimedwait({signal.SIGUSR2}, 0) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_host_whose_queue_of_signals_is_full_is_told() -> None:
    with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
        soft, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, hard))
        try:
            with pytest.raises(HypervisorCallError, match="RLIMIT_SIGPENDING"):
                machine.vcpu.kick()
        finally:
            resource.setrlimit(resource.RLIMIT_SIGPENDING, (soft, hard))
        machine.vcpu.kick()
        assert machine.run_once() == Interrupted()


def test_memory_that_a_vm_has_mapped_can_not_be_released_under_it() -> None:
    extra = GuestMemory.anonymous(0x1000, guests.DEVICE)
    with contract_machine(KvmHypervisor(), guests.LOOK_AT_DEVICE) as machine:
        machine.vm.map_memory(extra.regions[0])
        with pytest.raises(BufferError):
            extra.regions[0].view.release()
        assert machine.write_of(guests.PORT) == 0
    extra.release()


def test_signals_to_a_closed_vm_go_nowhere() -> None:
    with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
        line, bell = machine.vm.irq_line(5), machine.vm.doorbell(0xD000_0050, 0)
    before = os.eventfd(0, os.EFD_NONBLOCK)  # takes one of the numbers that were theirs
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)]
    try:
        line.trigger()
        bell.ring()
        for fd in (before, *others):
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd)
    finally:
        for fd in (before, *others):
            os.close(fd)


async def test_waiting_for_a_doorbell_of_a_closed_vm_is_an_error() -> None:
    with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
        bell = machine.vm.doorbell(0xD000_0050, 0)
    with pytest.raises(BackendError, match="closed"):
        await bell.wait()


def test_wrong_register_values_are_refused_before_the_kernel_sees_them() -> None:
    with contract_machine(KvmHypervisor(), guests.COUNT) as machine:
        before = machine.vcpu.registers()
        for wrong in ({"rax": -1}, {"rax": 1 << 64}, {"cs": 8}, {"gdt": 0}, {"rip": before["cs"]}):
            with pytest.raises(ValueError):
                machine.vcpu.set_registers(wrong)
        assert machine.vcpu.registers() == before


def test_every_local_apic_takes_the_pics_interrupts_at_lint0_and_nmis_at_lint1() -> None:
    calls = KernelCalls()
    hypervisor = KvmHypervisor(calls)
    vm = hypervisor.create_vm(vcpu_count=2)
    vcpus = [vm.create_vcpu(index) for index in range(2)]
    try:
        for index, vcpu in enumerate(vcpus):
            state = ffi.new("struct kvm_lapic_state *")
            calls.ioctl(vcpu._fd, ioctls.KVM_GET_LAPIC, state)
            registers = bytes(ffi.buffer(state))
            assert registers[0x23] == index
            assert registers[0x350:0x354] == b"\x00\x07\x00\x00"
            assert registers[0x360:0x364] == b"\x00\x04\x00\x00"
    finally:
        for vcpu in vcpus:
            vcpu.close()
        vm.close()


def test_facts_are_those_of_this_kvm() -> None:
    calls = KernelCalls()
    fd = open_kvm(calls)
    try:
        facts = read_facts(calls, fd)
        assert calls.ioctl(fd, ioctls.KVM_CHECK_EXTENSION, constants.KVM_CAP_USER_MEMORY)
    finally:
        os.close(fd)
    assert facts.mmap_size >= 2 * 4096
    assert {entry.function for entry in facts.cpuid} >= {0, 1, 7, 0x8000_0001}
    assert len(facts.msrs) > 10
    assert 1 <= facts.max_vcpu_count <= 254


@pytest.mark.slow
def test_a_thousand_machines_leave_no_descriptor_thread_mapping_or_memory_behind() -> None:
    """Row 100."""
    hypervisor = KvmHypervisor()

    def cycle() -> None:
        with contract_machine(hypervisor, guests.COUNT) as machine:
            machine.vm.irq_line(5)
            machine.vm.doorbell(0xD000_0050, 0)
            for value in range(3):
                assert machine.write_of(guests.PORT) == value

    for _ in range(50):
        cycle()
    with nothing_grows():
        for _ in range(1000):
            cycle()
