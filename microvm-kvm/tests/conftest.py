"""What the tests of the kvm backend share."""

import pytest

pytest.register_assert_rewrite("microvm.testing.hypervisor_contract")
