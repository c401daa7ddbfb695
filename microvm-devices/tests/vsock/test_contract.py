"""virtio-vsock keeps the contract of every device: rows 17 to 34, and what else stands there."""

from microvm.abc import VirtioDevice
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm_devices.vsock import plugin
from microvm_devices.vsock.packet import HEADER, VIRTIO_VSOCK_TYPE_STREAM, Op

RST = HEADER.pack(3, 2, 1024, 1024, 0, VIRTIO_VSOCK_TYPE_STREAM, Op.RST, 0, 0, 0)


class TestVsock(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return plugin.create({"guest_cid": 3})

    def request(self) -> Request:
        return Request(queue=1, readable=(RST,))
