"""What every `VirtioDevice` must do, as tests that a device's author subclasses.

    class TestOurs(VirtioDeviceContract):
        def device(self) -> VirtioDevice:
            return OurDevice()

        def request(self) -> Request:
            return Request(queue=0, writable=(16,))

Each test drives the device from the guest's end of its queues, over real memory and without a
hypervisor. Most are hostile: a driver may write anything into its rings and buffers, and whatever
it is, `run` may raise nothing but `GuestError`, and must neither hang nor grow. The others are the
duties that stand in `microvm.abc.VirtioDevice`: a pause loses nothing, a reset forgets, a
cancellation works at any moment.

Needs pytest and hypothesis. Put
``pytest.register_assert_rewrite("microvm.testing.virtio_contract")`` into a conftest.py, and a
failed assertion shows its values. The numbers in the tests' docstrings are rows of the hazard
catalogue by which this project tests its own devices.
"""

from __future__ import annotations

from microvm.testing.virtio_contract.contract import VirtioDeviceContract
from microvm.testing.virtio_contract.rig import Request, Rig

__all__ = ["Request", "Rig", "VirtioDeviceContract"]
