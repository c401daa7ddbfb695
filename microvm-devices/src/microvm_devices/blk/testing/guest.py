"""`GuestBlk`: the driver's side of virtio-blk.

On `microvm.testing.queue_driver` over real guest memory, in two layers. The raw one puts any chain
into the queue. On top of it are requests as a kernel makes them::

    guest = GuestBlk()
    async with guest.attached(device):
        assert await guest.write(8, b"x" * 512) == S_OK
        answer = await guest.read(8, 1)
        assert answer == Answer(status=S_OK, data=b"x" * 512)

It is written from the standard, and shares only the structures' layout with the device.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from microvm.memory import GuestMemory
from microvm.testing.queue_driver import GuestHeap, QueueDriver, activation
from microvm.virtio.features import RING_FEATURES
from microvm_devices.blk.layout import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_MQ,
    F_WRITE_ZEROES,
    HEADER,
    SECTOR_BYTES,
    SEGMENT,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice

ALL_FEATURES: Final = RING_FEATURES | F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES | F_MQ
_PAGE: Final = 4096
_UNTOUCHED: Final = 0xA5
"""What a status byte holds before the device writes it."""


@attrs.frozen
class Answer:
    """A request that the device has answered."""

    status: int
    """The chain's last writable byte; 0xA5 if the device never wrote it."""
    data: bytes = b""
    """The writable bytes before it."""
    written: int = attrs.field(default=0, eq=False)
    """How many bytes the device says it wrote."""


class GuestBlk:
    """A guest's block driver.

    Args:
        features: What was negotiated.
        queues: How many request queues there are.
        queue_size: Of each.
        mem_size: The guest's RAM in bytes.
        indirect: Put each request's buffers into a table of their own, as Linux does.
    """

    def __init__(
        self,
        *,
        features: int = ALL_FEATURES,
        queues: int = 1,
        queue_size: int = 64,
        mem_size: int = 64 * 1024 * 1024,
        indirect: bool = False,
    ) -> None:
        self.features = features
        self.memory = GuestMemory.anonymous(mem_size)
        heap = GuestHeap(_PAGE, mem_size)
        self.queues = tuple(
            QueueDriver(self.memory, heap=heap, size=queue_size, features=features)
            for _ in range(queues)
        )
        self._indirect = indirect
        self._writable: list[dict[int, list[tuple[int, int]]]] = [{} for _ in range(queues)]
        self._answers: list[dict[int, Answer]] = [{} for _ in range(queues)]

    # --- the device's life -----------------------------------------------------------------

    @asynccontextmanager
    async def attached(self, device: VirtioDevice) -> AsyncIterator[None]:
        """The device's whole life, with one run of it."""
        async with device.lifespan(), self.running(device):
            yield

    @asynccontextmanager
    async def running(self, device: VirtioDevice, *, fresh: bool = True) -> AsyncIterator[None]:
        """A run of the device within its lifespan; cancelled when the block is left.

        Args:
            device: The device.
            fresh: Whether the driver begins anew; False is going on after a pause.
        """
        if fresh:
            for queue in self.queues:
                queue.restart()
            for places in self._writable:
                places.clear()
            for answers in self._answers:
                answers.clear()
            device.reset()
        active = activation(*self.queues, features=self.features)
        if not fresh:
            active = attrs.evolve(
                active,
                queues=tuple(
                    attrs.evolve(one, queue=driver.queue(next_avail=self._resume_at[index]))
                    for index, (one, driver) in enumerate(
                        zip(active.queues, self.queues, strict=True)
                    )
                ),
            )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(device.run, active)
                yield
                nursery.cancel_scope.cancel()
        finally:
            for one in active.queues:
                one.queue.rewind()
            self._resume_at = [one.queue.next_avail for one in active.queues]

    _resume_at: Sequence[int] = ()

    # --- raw -------------------------------------------------------------------------------

    def put(self, readable: Sequence[bytes], writable: Sequence[int], *, queue: int = 0) -> int:
        """Offer any chain, and kick. Returns its head."""
        driver = self.queues[queue]
        head = driver.add(readable, writable, indirect=self._indirect)
        places = driver.writable_of(head)
        for address, length in places:
            self.memory.write(address, bytes([_UNTOUCHED]) * length)
        self._writable[queue][head] = list(places)
        driver.kick()
        return head

    def collect(self, queue: int = 0) -> None:
        """Take what the device has used."""
        # The blocks of a chain are free again, but nobody takes them before we have read them.
        for used in self.queues[queue].used():
            places = self._writable[queue].pop(used.head)
            whole = b"".join(self.memory.read(address, length) for address, length in places)
            self._answers[queue][used.head] = Answer(whole[-1], whole[:-1], used.written)

    async def answer(self, head: int, queue: int = 0) -> Answer:
        """Wait for the answer to a chain."""
        driver, answers = self.queues[queue], self._answers[queue]
        self.collect(queue)
        while head not in answers:
            if not driver.want_interrupt():
                await driver.irq.wait()
            self.collect(queue)
        return answers.pop(head)

    def answered(self, queue: int = 0) -> dict[int, Answer]:
        """All answers that nobody has asked for, without waiting."""
        self.collect(queue)
        answers = dict(self._answers[queue])
        self._answers[queue].clear()
        return answers

    # --- requests --------------------------------------------------------------------------

    def submit(
        self,
        type_: int,
        sector: int = 0,
        data: bytes = b"",
        *,
        room: int = 0,
        buffers: int = 1,
        queue: int = 0,
    ) -> int:
        """Offer a request as Linux cuts it: header; data in so many buffers; status."""
        header = HEADER.pack(type_, 0, sector)
        readable = [header, *(part for part in _cut_bytes(data, buffers))]
        writable = [*_cut_length(room, buffers), 1]
        return self.put(readable, writable, queue=queue)

    async def ask(
        self,
        type_: int,
        sector: int = 0,
        data: bytes = b"",
        *,
        room: int = 0,
        buffers: int = 1,
        queue: int = 0,
    ) -> Answer:
        """Submit a request and wait for its answer."""
        head = self.submit(type_, sector, data, room=room, buffers=buffers, queue=queue)
        return await self.answer(head, queue)

    async def read(self, sector: int, count: int, *, buffers: int = 1, queue: int = 0) -> Answer:
        """Read sectors."""
        return await self.ask(T_IN, sector, room=count * SECTOR_BYTES, buffers=buffers, queue=queue)

    async def write(self, sector: int, data: bytes, *, buffers: int = 1, queue: int = 0) -> int:
        """Write sectors; returns the status."""
        return (await self.ask(T_OUT, sector, data, buffers=buffers, queue=queue)).status

    async def flush(self, queue: int = 0) -> int:
        """Flush; returns the status."""
        return (await self.ask(T_FLUSH, queue=queue)).status

    async def get_id(self, room: int = 20) -> Answer:
        """Ask for the serial number."""
        return await self.ask(T_GET_ID, room=room)

    async def discard(self, *segments: tuple[int, int, int]) -> int:
        """Discard ranges of sector, count and flags; returns the status."""
        return (await self.ask(T_DISCARD, data=pack_segments(*segments))).status

    async def write_zeroes(self, *segments: tuple[int, int, int]) -> int:
        """Zero ranges of sector, count and flags; returns the status."""
        return (await self.ask(T_WRITE_ZEROES, data=pack_segments(*segments))).status


def pack_segments(*segments: tuple[int, int, int]) -> bytes:
    """The data of a DISCARD or WRITE_ZEROES."""
    return b"".join(SEGMENT.pack(*segment) for segment in segments)


def _cut_length(length: int, count: int) -> list[int]:
    if not length:
        return []
    step = -(-length // count)
    return [min(step, length - at) for at in range(0, length, step)]


def _cut_bytes(data: bytes, count: int) -> list[bytes]:
    parts, at = [], 0
    for length in _cut_length(len(data), count):
        parts.append(data[at : at + length])
        at += length
    return parts
