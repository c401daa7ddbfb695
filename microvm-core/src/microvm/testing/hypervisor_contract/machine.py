"""A VM with one guest of a few bytes, and a guard against guests that hang."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

import attrs

from microvm.arch.x86_64.registers import RFLAGS_RESERVED, RegisterValue, Segment
from microvm.boot.x86.entry import long_mode_entry, pvh_entry
from microvm.exits import Interrupted, PioWrite
from microvm.memory import GuestMemory
from microvm.testing.hypervisor_contract.guests import CODE, MEMORY_BYTES, STACK

if TYPE_CHECKING:
    from microvm.abc import Hypervisor, Vcpu, Vm
    from microvm.exits import VcpuExit

BOUND_S: Final = 10.0
"""A test whose guest has not come this far by then has failed."""

BYTES: Final = bytes(range(1, 9))
"""Data that a guest is given or gives: no two are the same, and none is zero."""


class ContractMachine:
    """A VM with 64 KiB of memory at 0, and vCPU 0 on the thread of the test."""

    def __init__(self, vm: Vm, vcpu: Vcpu, memory: GuestMemory) -> None:
        self.vm = vm
        self.vcpu = vcpu
        self.memory = memory
        self.expired = False

    def load(self, code: bytes, address: int = CODE) -> None:
        """Put code into memory."""
        self.memory.write(address, code)

    # --- how vCPU 0 starts ---------------------------------------------------------------------

    def enter_real_mode(self) -> None:
        """At `CODE`, in 16-bit mode: where a reset leaves it but for the code segment."""
        code = self.vcpu.registers()["cs"]
        assert isinstance(code, Segment)
        self._enter({"cs": attrs.evolve(code, selector=0, base=0)})

    def enter_protected_mode(self) -> None:
        """At `CODE`, in 32-bit mode without paging; segments are flat."""
        self._enter(pvh_entry(self.memory, CODE))

    def enter_long_mode(self) -> None:
        """At `CODE`, in 64-bit mode; the first GiB is mapped to itself."""
        self._enter(long_mode_entry(self.memory, CODE))

    def _enter(self, mode: Mapping[str, RegisterValue]) -> None:
        start = {"rip": CODE, "rsp": STACK, "rflags": RFLAGS_RESERVED}
        self.vcpu.set_registers({**mode, **start})

    # --- running -------------------------------------------------------------------------------

    def run_once(self) -> VcpuExit:
        """Run, and return whatever came."""
        exit_ = self.vcpu.run()
        assert not self.expired, f"The guest has not got there within {BOUND_S:g} s: {exit_}."
        return exit_

    def run(self) -> VcpuExit:
        """Run until something happened: an `Interrupted` may be for nothing at all."""
        while isinstance(exit_ := self.run_once(), Interrupted):
            pass
        return exit_

    def expect(self, *exits: VcpuExit) -> None:
        """Run, and these come, in this order."""
        for expected in exits:
            assert self.run() == expected

    def write_of(self, port: int) -> int:
        """Run until the guest writes a byte to that port, and return it."""
        exit_ = self.run()
        assert isinstance(exit_, PioWrite), exit_
        assert (exit_.port, exit_.size) == (port, 1)
        return exit_.data[0]

    def _expire(self) -> None:
        self.expired = True
        self.vcpu.kick()


@contextmanager
def contract_machine(
    hypervisor: Hypervisor, code: bytes, *, vcpu_count: int = 1
) -> Iterator[ContractMachine]:
    """A machine with `code` loaded, at its first instruction in real mode.

    Leaving the block closes it; what else a test created must be closed by then.
    """
    memory = GuestMemory.anonymous(MEMORY_BYTES)
    vm = hypervisor.create_vm(vcpu_count=vcpu_count)
    try:
        vm.map_memory(memory.regions[0])
        vcpu = vm.create_vcpu(0)
        machine = ContractMachine(vm, vcpu, memory)
        guard = threading.Timer(BOUND_S, machine._expire)
        try:
            guard.start()
            machine.load(code)
            machine.enter_real_mode()
            yield machine
        finally:
            guard.cancel()
            guard.join()
            vcpu.close()
    finally:
        vm.close()
    memory.release()


@contextmanager
def meanwhile(action: Callable[[], object], *, after_s: float = 0.05) -> Iterator[None]:
    """Do something on another thread a moment after the block has begun; joined at its end."""
    thread = threading.Timer(after_s, action)
    thread.start()
    try:
        yield
    finally:
        thread.join()


class HypervisorUnderTest(ABC):
    """What the parts of the contract have in common: the hypervisor, from its author."""

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
