"""The hypervisor: opens /dev/kvm for each VM that it makes, and keeps nothing open itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from microvm.abc import Hypervisor
from microvm.errors import HypervisorCallError
from microvm_kvm._abi import KernelCalls, ioctls
from microvm_kvm._facts import DEVICE, KvmFacts, open_kvm, read_facts
from microvm_kvm._vm import KvmVm

if TYPE_CHECKING:
    from microvm_kvm._abi import Calls

_NO_VM: Final = "See the kernel's log (dmesg); too many VMs, or too little memory."


class KvmHypervisor(Hypervisor):
    """Linux's KVM on x86_64.

    Args:
        calls: The kernel; a test may give another.
        device: Path of /dev/kvm.
    """

    def __init__(self, calls: Calls | None = None, device: str = DEVICE) -> None:
        self._calls: Calls = KernelCalls() if calls is None else calls
        self._device = device
        self._facts: KvmFacts | None = None

    @property
    def arch(self) -> str:
        return "x86_64"

    @property
    def max_vcpu_count(self) -> int:
        if self._facts is None:
            fd = open_kvm(self._calls, self._device)
            try:
                return self._facts_of(fd).max_vcpu_count
            finally:
                os.close(fd)
        return self._facts.max_vcpu_count

    def create_vm(self, *, vcpu_count: int) -> KvmVm:
        fd = open_kvm(self._calls, self._device)
        try:
            facts = self._facts_of(fd)
            try:
                vm = self._calls.ioctl(fd, ioctls.KVM_CREATE_VM)
            except HypervisorCallError as error:
                raise HypervisorCallError(error.call, error.errno, remedy=_NO_VM) from error
        finally:
            os.close(fd)
        return KvmVm(self._calls, vm, facts, vcpu_count=vcpu_count)

    def _facts_of(self, fd: int) -> KvmFacts:
        """Asked once; threads that ask at the same time get the same answer."""
        if self._facts is None:
            self._facts = read_facts(self._calls, fd)
        return self._facts
