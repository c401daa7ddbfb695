"""The contract of hypervisors, on the KVM of this machine, whatever it is good for."""

import os
import sys

import pytest

from microvm.abc import Hypervisor
from microvm.errors import BackendUnavailable
from microvm.testing.hypervisor_contract import HypervisorContract
from microvm_kvm._abi import KernelCalls
from microvm_kvm._facts import open_kvm
from microvm_kvm._kvm import KvmHypervisor

pytestmark = pytest.mark.kvm


class TestKvm(HypervisorContract):
    def hypervisor(self) -> Hypervisor:
        if sys.platform != "linux":
            pytest.skip("KVM is Linux's")
        try:
            os.close(open_kvm(KernelCalls()))
        except BackendUnavailable as error:
            pytest.skip(error.message)
        return KvmHypervisor()
