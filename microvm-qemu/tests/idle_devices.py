"""Devices that no driver ever uses, and what guests of a few bytes print."""

from collections.abc import Sequence

import trio

from microvm.abc import Activation, RunningMachine, VirtioDevice
from microvm.virtio.ids import DeviceType


class Idle(VirtioDevice):
    """A device that no driver ever uses."""

    def __init__(self, kind: int, queues: Sequence[int] = (64,), config: bytes = b"") -> None:
        self._kind = kind
        self._queues = queues
        self._config = config

    @property
    def device_id(self) -> int:
        return self._kind

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        return self._queues

    def read_config(self, offset: int, length: int) -> bytes:
        return self._config[offset : offset + length].ljust(length, b"\0")

    async def run(self, activation: Activation) -> None:
        await trio.sleep_forever()


VSOCK = Idle(DeviceType.VSOCK, (128, 128, 128), (3).to_bytes(8, "little"))
RNG = Idle(DeviceType.ENTROPY, (64,))
BLK = Idle(DeviceType.BLOCK, (128,), (2048).to_bytes(8, "little"))
FS = Idle(DeviceType.FS, (128, 128), b"a,b=c".ljust(36, b"\0") + (1).to_bytes(4, "little"))


async def printed(machine: RunningMachine, characters: int = 1) -> None:
    """Wait until the guest has printed so much."""
    while len("".join(machine.console_tail())) < characters:  # noqa: ASYNC110 - tells nobody
        await trio.sleep(0.001)
