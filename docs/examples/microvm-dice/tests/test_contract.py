from microvm_dice.device import DiceDevice

from microvm.testing.virtio_contract import Request, VirtioDeviceContract


class TestDice(VirtioDeviceContract):
    def device(self):
        return DiceDevice(seed=7)

    def request(self):
        return Request(queue=0, writable=(4, 12))
