"""`RngDevice`: the host's entropy as a virtio device (virtio 1.2, 5.4 Entropy Device)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from microvm.abc import VirtioDevice
from microvm.errors import QueueError
from microvm.virtio.chain import ChainWriter
from microvm.virtio.ids import DeviceType
from microvm.virtio.rate_limit import RateLimiter
from microvm_devices.rng.source import CharacterDevice

if TYPE_CHECKING:
    from microvm.abc import Activation, ActiveQueue
    from microvm.virtio.chain import DescriptorChain
    from microvm_devices.rng.config import RngConfig

QUEUE_SIZE: Final = 64
MAX_ANSWER_BYTES: Final = 64 * 1024
"""What one request gets at most; 0.2 ms of the host's time. A device may fill less than it was
given, but not nothing (5.4.6.2)."""


class RngDevice(VirtioDevice):
    """One queue of buffers to fill. It has no features and no configuration space.

    Requests are answered in order. What comes faster than the rate limit waits in the queue.
    """

    def __init__(self, config: RngConfig) -> None:
        self._source = CharacterDevice(config.source) if config.source is not None else None
        self._limiter = RateLimiter(config.rate_limit)
        self._requests = 0
        self._written_bytes = 0
        self._throttled = 0
        self._errors = 0

    @property
    def device_id(self) -> int:
        """4."""
        return DeviceType.ENTROPY

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        """The requestq (5.4.2)."""
        return (QUEUE_SIZE,)

    def counters(self) -> Mapping[str, int]:
        """As `VirtioDevice.counters`; `written_bytes` were given to the guest."""
        return {
            "requests": self._requests,
            "written_bytes": self._written_bytes,
            "throttled": self._throttled,
            "errors": self._errors,
        }

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """See that the source is there.

        Raises:
            ConfigError: it is not.
        """
        if self._source is not None:
            self._source.check()
        yield

    async def run(self, activation: Activation) -> None:
        """As `VirtioDevice.run`."""
        import trio

        if not activation.queues:  # the driver has set none up
            await trio.sleep_forever()
        requests = activation.queues[0]
        while True:
            await self._serve(requests)
            await trio.lowlevel.checkpoint()
            if not requests.queue.enable_notification():
                await requests.doorbell.wait()

    async def _serve(self, requests: ActiveQueue) -> None:
        """Answer what is there now, and interrupt."""
        requests.queue.disable_notification()
        for chain in requests.queue.pop_all():
            length = self._answer_length(chain)
            await self._wait_for_turn(requests, length)
            data = await self._read(length)
            writer = ChainWriter(chain)
            writer.write(data)
            requests.queue.add_used(chain.head, writer.written)
            self._requests += 1
            self._written_bytes += writer.written
        requests.notify()

    def _answer_length(self, chain: DescriptorChain) -> int:
        # 5.4.6.1: "The driver MUST NOT place driver-readable buffers into the queue."
        if chain.readable_len or not chain.writable_len:
            self._errors += 1
            raise QueueError("An entropy request has device-writable buffers, and no others.")
        return min(chain.writable_len, MAX_ANSWER_BYTES)

    async def _wait_for_turn(self, requests: ActiveQueue, length: int) -> None:
        import trio

        waited = False
        while wait := self._limiter.delay_s(trio.current_time(), bytes=length):
            if not waited:
                waited = True
                self._throttled += 1
                requests.notify()  # of those answered before
            await trio.sleep(wait)
        self._limiter.take(trio.current_time(), bytes=length)

    async def _read(self, length: int) -> bytes:
        return os.urandom(length) if self._source is None else await self._source.read(length)
