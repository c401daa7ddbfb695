"""A device under the virtio-mmio transport, with its driver and without a hypervisor.

    async with served(MyDevice()) as bench:
        await on_cpu(bench.driver.initialize, [queue.layout for queue in bench.queues])
        bench.queues[0].add([b"question"], [64])
        await on_cpu(bench.driver.notify, 0)
        await bench.irq.wait()

`UpperDevice` is the least device there is, for tests of the transport itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs
import trio

from microvm._loop_calls import LoopCalls
from microvm.abc import Activation, ActiveQueue, GuestDoorbell, VirtioDevice
from microvm.errors import QueueError
from microvm.memory import GuestMemory
from microvm.testing.mmio_driver import MmioDriver
from microvm.testing.queue_driver import FakeIrqLine, GuestHeap, QueueDriver
from microvm.virtio.chain import ChainReader, ChainWriter
from microvm.virtio.mmio import VirtioMmioTransport

if TYPE_CHECKING:
    from microvm.virtio.chain import DescriptorChain
    from microvm.virtio.queue import VirtQueue

MEMORY_BYTES = 1 << 20
QUEUE_SIZE = 16

D = TypeVar("D", bound=VirtioDevice)


class BenchDoorbell(GuestDoorbell):
    """Rung by hand, from any thread; a ring before the first `wait` is kept. `rings` counts."""

    def __init__(self) -> None:
        self.rings = 0
        self._calls = LoopCalls()
        self._attached = False
        self._rung = trio.Event()

    def ring(self) -> None:
        """As `GuestDoorbell.ring`."""
        self.rings += 1
        self._calls.post(lambda: self._rung.set())

    async def wait(self) -> None:
        """As `Doorbell.wait`."""
        if not self._attached:
            self._attached = True
            self._calls.attach(trio.lowlevel.current_trio_token())
        await self._rung.wait()
        self._rung = trio.Event()


class UpperDevice(VirtioDevice):
    """Answers each chain with what it read, in capitals. Keeps a diary."""

    def __init__(self, queues: int = 1) -> None:
        self.diary: list[str] = []
        self.config = bytearray(b"\x01\x02\x03\x04\x05\x06\x07\x08")
        self.activation: Activation | None = None
        self.end_takes_s = 0.0
        self.running = False
        self._queues = queues

    @property
    def device_id(self) -> int:
        return 42

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        return (QUEUE_SIZE,) * self._queues

    @property
    def features(self) -> int:
        return 1 << 3

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(self.config[offset : offset + length]).ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        self.diary.append(f"config {offset} {data.hex()}")

    def reset(self) -> None:
        assert not self.running
        self.diary.append("reset")

    async def run(self, activation: Activation) -> None:
        assert not self.running
        self.running = True
        self.diary.append("run")
        self.activation = activation
        try:
            async with trio.open_nursery() as nursery:
                for active in activation.queues:
                    nursery.start_soon(self._serve, active)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.end_takes_s)
            self.running = False
            self.diary.append("end")

    async def until(self, entry: str, times: int = 1) -> None:
        """Wait until the diary has an entry so many times."""
        while self.diary.count(entry) < times:  # noqa: ASYNC110 - tests wait for any entry
            await trio.sleep(0.001)

    async def _serve(self, active: ActiveQueue) -> None:
        queue = active.queue
        while True:
            await active.doorbell.wait()
            busy = True
            while busy:
                queue.disable_notification()
                for chain in queue.pop_all():
                    self._answer(queue, chain)
                active.notify()
                await trio.lowlevel.checkpoint()
                busy = queue.enable_notification()

    def _answer(self, queue: VirtQueue, chain: DescriptorChain) -> None:
        reader, writer = ChainReader(chain), ChainWriter(chain)
        question = reader.read(reader.remaining)
        if len(question) > writer.remaining:
            raise QueueError("There is no room for an answer.")
        writer.write(question.upper())
        queue.add_used(chain.head, writer.written)


@attrs.frozen(kw_only=True)
class Bench(Generic[D]):
    """Everything that a test of a device under the transport needs."""

    device: D
    transport: VirtioMmioTransport
    driver: MmioDriver
    queues: tuple[QueueDriver, ...]
    irq: FakeIrqLine
    doorbells: tuple[BenchDoorbell, ...]
    memory: GuestMemory
    calls: LoopCalls


def build(
    device: D, memory: GuestMemory | None = None, *, calls: LoopCalls | None = None
) -> Bench[D]:
    """Everything, without a loop.

    Args:
        device: The device.
        memory: As the test lays it out; else `MEMORY_BYTES`.
        calls: The way to a loop that is still to come; without, there is nobody to wait for.
    """
    memory = memory or GuestMemory.anonymous(MEMORY_BYTES)
    heap = GuestHeap(4096, MEMORY_BYTES)
    irq = FakeIrqLine()
    if calls is None:
        calls = LoopCalls()
        calls.close()
    sizes = device.queue_max_sizes
    doorbells = tuple(BenchDoorbell() for _ in sizes)
    transport = VirtioMmioTransport(
        device, memory=memory, irq=irq, doorbells=doorbells, calls=calls
    )
    return Bench(
        device=device,
        transport=transport,
        driver=MmioDriver(transport),
        queues=tuple(QueueDriver(memory, heap=heap, size=size) for size in sizes),
        irq=irq,
        doorbells=doorbells,
        memory=memory,
        calls=calls,
    )


@asynccontextmanager
async def served(device: D) -> AsyncIterator[Bench[D]]:
    """Everything, with the transport served."""
    bench = build(device, calls=LoopCalls())
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.transport.serve)
        bench.calls.attach(trio.lowlevel.current_trio_token())
        try:
            yield bench
        finally:
            nursery.cancel_scope.cancel()
