"""The device against any driver, good or bad: the tests are microvm's, the device is ours."""

from microvm_dice.device import DiceDevice

from microvm.abc import VirtioDevice
from microvm.testing.virtio_contract import Request, VirtioDeviceContract


class TestDice(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return DiceDevice(seed=7)

    def request(self) -> Request:
        return Request(queue=0, writable=(4, 12))
