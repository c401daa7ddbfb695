"""virtio-net keeps the contract of every device: rows 17 to 34, and what else stands there."""

from microvm.abc import VirtioDevice
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm_devices.net.device import NetDevice
from microvm_devices.net.null.link import NullBackend
from microvm_devices.net.packet import HEADER_BYTES
from microvm_devices.net.testing import ethernet, settings

PROMISCUOUS_ON = b"\0\0\1"
"""struct virtio_net_ctrl: class RX, command PROMISC, on (5.1.6.5.1)."""


class TestTransmission(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return NetDevice(NullBackend(), settings())

    def request(self) -> Request:
        return Request(queue=1, readable=(bytes(HEADER_BYTES), ethernet()))


class TestControl(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return NetDevice(NullBackend(), settings(queues=2))

    def request(self) -> Request:
        return Request(queue=4, readable=(PROMISCUOUS_ON,), writable=(1,))
