"""A device with a driver for each of its queues, run until it rests or fails."""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio
import trio.testing

from microvm.abc import Activation, ActiveQueue
from microvm.errors import GuestError
from microvm.memory import GuestMemory
from microvm.testing.queue_driver import GuestHeap, QueueDriver
from microvm.testing.virtio_contract.bounds import Steps
from microvm.virtio.chain import DESC_F_NEXT, DESC_F_WRITE
from microvm.virtio.device_run import leaves
from microvm.virtio.features import RING_FEATURES

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice

BOUND_S: Final = 20.0
"""When a test gives a device up. Far above what anything here takes on a slow host."""
MEMORY_BYTES: Final = 16 << 20
MAX_QUEUE_SIZE: Final = 64
"""Of the drivers' queues, where the device allows as much."""
PATTERN: Final = 0xA5
"""What writable buffers hold before the device writes, unless a test says another."""


class DeviceHangs(BaseException):
    """A device kept its thread for longer than `BOUND_S`. No `Exception`: nobody swallows it."""


@attrs.frozen(kw_only=True)
class Request:
    """A request that the device answers by itself, as a well-behaved driver would put it."""

    queue: int
    readable: tuple[bytes, ...] = ()
    writable: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class Segment:
    """One buffer of a chain."""

    address: int
    length: int
    flags: int = 0
    """`DESC_F_WRITE`, or what the standard does not know."""


class Rig:
    """One device and its driver doubles.

    Args:
        device: The device.
        features: What the driver accepts, of the device's own features and the ring's.
    """

    def __init__(self, device: VirtioDevice, features: int) -> None:
        self.device = device
        self.features = features
        self.memory = GuestMemory.anonymous(MEMORY_BYTES)
        self.heap = GuestHeap(4096, MEMORY_BYTES)
        self.queues = tuple(
            QueueDriver(
                self.memory,
                heap=self.heap,
                size=min(size, MAX_QUEUE_SIZE),
                features=features & RING_FEATURES,
            )
            for size in device.queue_max_sizes
        )
        self._bases = [0] * len(self.queues)
        self._active: tuple[ActiveQueue, ...] = ()

    # --- runs --------------------------------------------------------------------------------

    def activation(self) -> Activation:
        """A new device side of every queue, which goes on where the last one ended."""
        self._active = tuple(
            ActiveQueue(
                queue=driver.queue(next_avail=base), doorbell=driver.doorbell, irq=driver.irq
            )
            for driver, base in zip(self.queues, self._bases, strict=True)
        )
        for driver in self.queues:
            driver.doorbell.ring()  # as the transports do: the first wait returns at once
        return Activation(
            features=self.features,
            queues=self._active,
            memory=self.memory,
            config_changed=lambda: None,
        )

    def take_back(self) -> None:
        """What a transport does when a run is over: whoever comes next begins there."""
        for active in self._active:
            active.queue.rewind()
        self._bases = [active.queue.next_avail for active in self._active]

    def restart(self) -> None:
        """The driver resets the device, and begins anew."""
        self.device.reset()
        for driver in self.queues:
            driver.restart()
        self._bases = [0] * len(self.queues)

    @property
    def in_flight(self) -> list[int]:
        """Chains that the device has, by queue."""
        return [active.queue.in_flight for active in self._active]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the block lasts, the device runs; what it raises comes out, but for the groups."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.device.run, self.activation())
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            self.take_back()

    async def outcome(self, active: Activation | None = None) -> GuestError | None:
        """Run the device until it rests, and end the run; what it said of its driver, if it did.

        Raises:
            AssertionError: it raised what is no `GuestError`, came back by itself, or never rested.
        """
        found: list[GuestError] = []
        rests = False
        returned = False

        async def run() -> None:
            nonlocal returned
            await self.device.run(active if active is not None else self.activation())
            returned = True

        with trio.move_on_after(BOUND_S / 4) as bound:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    await self.rest()
                    rests = True
                    nursery.cancel_scope.cancel()
            except* GuestError as group:
                found.extend(leaves(group))
        if active is None:
            self.take_back()
        assert not bound.cancelled_caught, "The device never comes to rest."
        assert rests or found, "The device ended its run without an error."
        assert not returned, "The device's `run` returned: it serves until it is cancelled."
        return found[0] if found else None

    async def rest(self) -> None:
        """Let the device do all that it has to; what threads do for it, too."""
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            if not any(self.in_flight):
                return
            await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked()

    # --- requests ----------------------------------------------------------------------------

    def segments(self, request: Request, *, pattern: int = PATTERN) -> list[Segment]:
        """Buffers for a request, the writable ones full of one byte."""
        found = []
        for data in request.readable:
            address, _ = self.heap.take(len(data))
            self.memory.write(address, data)
            found.append(Segment(address=address, length=len(data)))
        for length in request.writable:
            address, _ = self.heap.take(length)
            self.memory.write(address, bytes([pattern]) * length)
            found.append(Segment(address=address, length=length, flags=DESC_F_WRITE))
        return found

    def offer(self, queue: int, segments: Sequence[Segment], first: int = 0) -> int:
        """Offer a chain made of descriptors from `first` on, legal or not; returns its head."""
        driver = self.queues[queue]
        for position, segment in enumerate(segments):
            more = DESC_F_NEXT if position + 1 < len(segments) else 0
            index = first + position
            driver.write_descriptor(
                index, segment.address, segment.length, segment.flags | more, index + 1
            )
        driver.offer(first)
        driver.doorbell.ring()
        return first

    async def answered(self, queue: int, count: int = 1) -> list[tuple[int, int]]:
        """Wait until so many chains came back: heads and lengths.

        Raises:
            AssertionError: they do not.
        """
        driver = self.queues[queue]
        elements = driver.used_elements()
        with trio.move_on_after(BOUND_S / 4):
            while len(elements) < count:
                await trio.sleep(0.001)
                elements += driver.used_elements()
        assert len(elements) >= count, f"Of {count} requests, {len(elements)} were answered."
        return elements

    def move_indexes(self, queue: int, index: int) -> None:
        """Have a queue begin at this index, as one that has served so many requests."""
        self.queues[queue].begin_at(index)
        self._bases[queue] = index

    def release(self) -> None:
        """What a transport does at a reset: the queues of the run are gone."""
        for active in self._active:
            active.queue.release()

    def content(self, segments: Sequence[Segment]) -> bytes:
        """What the writable buffers hold."""
        return b"".join(
            self.memory.read(segment.address, segment.length)
            for segment in segments
            if segment.flags & DESC_F_WRITE
        )


@contextmanager
def watched() -> Iterator[None]:
    """A body that is interrupted by `DeviceHangs` when it holds its thread for too long.

    By a signal, so in the main thread and where there are signals; elsewhere such a test hangs.
    """
    usable = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if not usable:
        yield
        return

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        raise DeviceHangs(f"The device held its thread for {BOUND_S} s.")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, BOUND_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def play(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's body on a trio loop of its own, bounded and watched.

    Raises:
        AssertionError: a step of it took too long; see `Steps`.
    """

    async def bounded() -> None:
        with trio.fail_after(BOUND_S / 2):
            await test()

    steps = Steps()
    with watched():
        trio.run(bounded, instruments=[steps])
    steps.check()
