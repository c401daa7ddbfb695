"""Entropy that follows from a seed (virtio 1.2, 5.4 Entropy Device)."""

import random

import trio

from microvm.abc import Activation, VirtioDevice
from microvm.errors import QueueError
from microvm.virtio.chain import ChainWriter, DescriptorChain
from microvm.virtio.ids import DeviceType

MAX_ANSWER_BYTES = 4096  # the guest chooses how much it asks for; we, how much it gets


class DiceDevice(VirtioDevice):
    device_id = DeviceType.ENTROPY
    queue_max_sizes = (16,)

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        self._dice = random.Random(self._seed)  # noqa: S311 - repeatable is what it is for

    async def run(self, activation: Activation) -> None:
        if not activation.queues:  # the driver has set none up
            await trio.sleep_forever()
        requests = activation.queues[0]
        while True:
            requests.queue.disable_notification()
            for chain in requests.queue.pop_all():
                requests.queue.add_used(chain.head, self._fill(chain))
            requests.notify()
            await trio.lowlevel.checkpoint()  # a busy guest must leave room for other tasks
            if not requests.queue.enable_notification():  # True: more has come meanwhile
                await requests.doorbell.wait()

    def _fill(self, chain: DescriptorChain) -> int:
        if chain.readable_len or not chain.writable_len:
            raise QueueError("An entropy request has device-writable buffers, and no others.")
        writer = ChainWriter(chain)
        writer.write(self._dice.randbytes(min(writer.remaining, MAX_ANSWER_BYTES)))
        return writer.written
