"""The guest's half of a console, for tests: a driver double with all its queues."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from microvm.abc import Activation, ActiveQueue
from microvm.memory import GuestMemory
from microvm.testing.queue_driver import GuestHeap, QueueDriver
from microvm.virtio.features import RING_FEATURES
from microvm_devices.console.control import CONTROL, Event
from microvm_devices.console.device import ConsoleDevice, port_queues


class GuestConsole:
    """A driver of `device`, as Linux's is one."""

    def __init__(
        self, device: ConsoleDevice, *, features: int | None = None, ring: int = RING_FEATURES
    ) -> None:
        self.device = device
        self.features = device.features if features is None else features
        self.ring = ring
        self.memory = GuestMemory.anonymous(16 << 20)
        heap = GuestHeap(4096, 16 << 20)
        count = len(device.queue_max_sizes) if self.features & 2 else 2
        self.queues = [
            QueueDriver(self.memory, heap=heap, size=16, features=ring) for _ in range(count)
        ]
        self._bases = [0] * count
        self.config_changes = 0
        self.rx_bytes = 64

    def port(self, number: int) -> tuple[QueueDriver, QueueDriver]:
        """A port's receiveq and transmitq."""
        receive, transmit = port_queues(number)
        return self.queues[receive], self.queues[transmit]

    @asynccontextmanager
    async def driving(self, *, resume: bool = False, settle: bool = True) -> AsyncIterator[None]:
        """While the block lasts, the device runs.

        Args:
            resume: Go on where the last such block ended, as after a pause.
            settle: Let the device come to rest first.
        """
        if not resume:
            self.device.reset()
            for queue in self.queues:
                queue.restart()
            self._bases = [0] * len(self.queues)
        rings = [
            driver.queue(next_avail=base)
            for driver, base in zip(self.queues, self._bases, strict=True)
        ]
        active = Activation(
            features=self.ring | self.features,
            queues=tuple(
                ActiveQueue(queue=ring, doorbell=driver.doorbell, irq=driver.irq)
                for driver, ring in zip(self.queues, rings, strict=True)
            ),
            memory=self.memory,
            config_changed=self._config_changed,
        )
        async with trio.open_nursery() as nursery:
            for driver in self.queues:
                driver.doorbell.ring()  # the transports' first wait returns at once
            nursery.start_soon(self.device.run, active)
            if settle:
                await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()
        for ring in rings:
            ring.rewind()
        self._bases = [ring.next_avail for ring in rings]

    def _config_changed(self) -> None:
        self.config_changes += 1

    # --- control -----------------------------------------------------------------------------

    async def say(self, number: int, event: int, value: int = 1) -> None:
        """Send a control message, and wait until it is heard."""
        await self.queues[3].ask([CONTROL.pack(number, event, value)])

    async def hear(self) -> list[tuple[int, int, int]]:
        """What the device says now."""
        heard = []
        control = self.queues[2]
        while True:
            while control.free_descriptors:
                control.add([], [256])
            control.kick()
            await trio.testing.wait_all_tasks_blocked()
            used = control.used()
            heard += [CONTROL.unpack_from(message.data) for message in used]
            if not used:
                return heard

    async def set_up(self) -> None:
        """As Linux does: every port is added and opened by nobody yet."""
        await self.say(0, Event.DEVICE_READY)
        for number, event, _ in await self.hear():
            assert event == Event.DEVICE_ADD
            await self.say(number, Event.PORT_READY)
        await self.hear()

    async def open(self, number: int) -> None:
        """A program of the guest opens the port."""
        await self.say(number, Event.PORT_OPEN, 1)

    async def close(self, number: int) -> None:
        """It closes the port."""
        await self.say(number, Event.PORT_OPEN, 0)

    # --- data --------------------------------------------------------------------------------

    async def print(self, data: bytes, number: int = 0) -> None:
        """Send on a port, and wait until the device has taken it."""
        await self.port(number)[1].ask([data])

    def offer(self, number: int = 0, count: int = 4) -> None:
        """Give buffers to receive into."""
        receive = self.port(number)[0]
        for _ in range(count):
            receive.add([], [self.rx_bytes])
        receive.kick()

    async def read(self, number: int, length: int) -> bytes:
        """Receive so many bytes on a port."""
        data = b""
        receive = self.port(number)[0]
        while len(data) < length:
            if receive.free_descriptors:
                self.offer(number, 1)
            data += b"".join(used.data for used in await receive.wait_used())
        return data
