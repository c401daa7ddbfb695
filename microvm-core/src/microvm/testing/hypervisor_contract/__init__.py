"""What every `Hypervisor` must do, as tests that a backend's author subclasses.

    class TestOurs(HypervisorContract):
        def hypervisor(self) -> Hypervisor:
            return OurHypervisor()

Each test is one behaviour of the interfaces in `microvm.abc.hypervisor`, shown by a guest of a few
instructions (`guests`). They are x86's, in 16-bit and 32-bit mode where that will do: hypervisors
that emulate go no further. Needs pytest; put
``pytest.register_assert_rewrite("microvm.testing.hypervisor_contract")`` into a conftest.py, and a
failed assertion shows its values.

A guest that hangs is ended by a kick, and its test fails. Where kicks themselves don't work the
test hangs: begin with ``-k kick``.
"""

from __future__ import annotations

from microvm.testing.hypervisor_contract.contract import HypervisorContract
from microvm.testing.hypervisor_contract.machine import ContractMachine

__all__ = ["ContractMachine", "HypervisorContract"]
