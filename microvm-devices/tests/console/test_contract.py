"""virtio-console keeps the contract of every device: rows 17 to 34, and what else stands there."""

from microvm.abc import VirtioDevice
from microvm.testing.virtio_contract import Request, Rig, VirtioDeviceContract
from microvm_devices.console import plugin
from microvm_devices.console.control import CONTROL, Event


class TestTerminal(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return plugin.create({"size": (80, 25)})

    def request(self) -> Request:
        return Request(queue=1, readable=(b"login: ",))


class TestControl(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return plugin.create({"ports": ["agent", "log"]})

    def request(self) -> Request:
        return Request(queue=3, readable=(CONTROL.pack(1, Event.PORT_READY, 1),))


class TestControlOfADriverThatIsReady(TestControl):
    async def prepare(self, rig: Rig) -> None:
        rig.queues[3].add([CONTROL.pack(0, Event.DEVICE_READY, 1)])
        rig.queues[3].doorbell.ring()
