"""A virtio entropy device whose entropy follows from a seed (virtio 1.2, 5.4 Entropy Device)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from microvm.abc import VirtioDevice
from microvm.errors import QueueError
from microvm.virtio.chain import ChainWriter
from microvm.virtio.ids import DeviceType

if TYPE_CHECKING:
    from microvm.abc import Activation, ActiveQueue
    from microvm.virtio.chain import DescriptorChain

QUEUE_SIZE = 16
MAX_ANSWER_BYTES = 4096
"""What one request gets at most. The guest chooses the size of its buffers, and nobody's host
should be busy for as long as that takes (5.4.6.1: a device may fill less than the buffer)."""


class DiceDevice(VirtioDevice):
    """One queue, `requestq`, of buffers to fill. It has no features and no configuration.

    Args:
        seed: Devices with the same seed hand out the same bytes, also after a reset.
    """

    def __init__(self, *, seed: int) -> None:
        self._seed = seed

    @property
    def device_id(self) -> int:
        return DeviceType.ENTROPY

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        return (QUEUE_SIZE,)

    async def run(self, activation: Activation) -> None:
        dice = random.Random(self._seed)  # noqa: S311 - repeatable is what it is for
        if not activation.queues:  # the driver has set up no queue
            await trio.sleep_forever()
        requests = activation.queues[0]
        while True:
            self._serve(requests, dice)
            # A guest that never stops asking must not keep the other tasks from running.
            await trio.lowlevel.checkpoint()
            if not requests.queue.enable_notification():
                await requests.doorbell.wait()

    def _serve(self, requests: ActiveQueue, dice: random.Random) -> None:
        requests.queue.disable_notification()
        for chain in requests.queue.pop_all():
            requests.queue.add_used(chain.head, fill(chain, dice))
        requests.notify()


def fill(chain: DescriptorChain, dice: random.Random) -> int:
    """Fill a request's buffers, and return how many bytes that took.

    Raises:
        QueueError: it is not a request (5.4.6 Device Operation: device-writable buffers only).
    """
    if chain.readable_len or not chain.writable_len:
        raise QueueError("An entropy request has device-writable buffers, and no others.")
    writer = ChainWriter(chain)
    writer.write(dice.randbytes(min(writer.remaining, MAX_ANSWER_BYTES)))
    return writer.written
