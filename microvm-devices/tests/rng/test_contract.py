"""virtio-rng keeps the contract of every device: rows 17 to 34, and what else stands there."""

from microvm.abc import VirtioDevice
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm_devices.rng import plugin


class TestRng(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return plugin.create({"rate_limit": None})

    def request(self) -> Request:
        return Request(queue=0, writable=(4, 12))
