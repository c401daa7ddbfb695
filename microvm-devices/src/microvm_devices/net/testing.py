"""A net backend that a test plays, and a guest's network driver: for tests and benchmarks.

`ScriptedNet` is what carries the frames; `NetDriver` is the guest's half of a card's queues. A test
reads from top to bottom::

    net = ScriptedNet()
    async with running(NetDevice(net, settings), features) as driver:
        driver.send(FRAME)
        assert await net.link.sent() == FRAME
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from microvm.abc import Frame, NetBackend, NetLink, NetLinks, Offload
from microvm.errors import NetLinkDown
from microvm.memory import GuestMemory
from microvm.testing.queue_driver import GuestHeap, QueueDriver, UsedBuffer, activation
from microvm.virtio.features import RING_FEATURES
from microvm_devices.net.features import F_CTRL_VQ, F_MRG_RXBUF
from microvm_devices.net.packet import HEADER, HEADER_BYTES, PLAIN, scatter
from microvm_devices.net.settings import NetSettings

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice

MAC = bytes.fromhex("020000000001")
PEER = bytes.fromhex("020000000002")
MEMORY_BYTES = 64 << 20
NOTHING = Offload(0)


def ethernet(payload: bytes = b"payload", *, source: bytes = MAC, to: bytes = PEER) -> bytes:
    """A frame; its type is one that nobody uses (IEEE 802, 9.2.2: for experiments)."""
    return to + source + b"\x88\xb5" + payload


def settings(*, fixed_mac: bool = False, **others: object) -> NetSettings:
    """A device's settings, its address `MAC`."""
    return NetSettings(mac=MAC, fixed_mac=fixed_mac, **others)  # type: ignore[arg-type]


class ScriptedLink(NetLink):
    """Keeps what is sent, and gives what it was handed.

    `room` is how many frames it takes before it blocks; None for any number.
    """

    def __init__(self) -> None:
        self.taken: deque[bytes] = deque()
        self.batches: list[int] = []
        """How many frames each call of `send` took."""
        self.incoming: deque[bytes] = deque()
        self.room: int | None = None
        self.broken: str | None = None
        self.accepted: Offload | None = None
        self._changed = trio.Event()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- what a test does --------------------------------------------------------------------

    def give(self, *frames: bytes) -> None:
        """Let the guest receive these."""
        self.incoming.extend(frames)
        self._tell()

    def make_room(self, frames: int | None) -> None:
        """Take so many frames more."""
        self.room = frames
        self._tell()

    def break_off(self, why: str = "The other end hung up.") -> None:
        """There is nobody at the other end any more."""
        self.broken = why
        self._tell()

    async def sent(self) -> bytes:
        """The next frame that the guest has sent."""
        while not self.taken:
            await self._changed.wait()
        return self.taken.popleft()

    # --- NetLink -----------------------------------------------------------------------------

    def accept(self, offloads: Offload) -> None:
        """As `NetLink.accept`."""
        self.accepted = offloads

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`."""
        if self.broken is not None:
            raise NetLinkDown(self.broken)
        count = len(frames) if self.room is None else min(self.room, len(frames))
        if self.room is not None:
            self.room -= count
        self.taken.extend(b"".join(frame) for frame in frames[:count])
        self.batches.append(count)
        self._tell()
        return count

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`."""
        if not self.incoming:
            if self.broken is not None:
                raise NetLinkDown(self.broken)
            return None
        frame = self.incoming.popleft()
        scatter(buffers, frame)
        return len(frame)

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        while not self.incoming and self.broken is None:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        while self.room == 0 and self.broken is None:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()


class ScriptedNet(NetBackend):
    """Links that a test plays.

    Args:
        vnet_header: As `NetBackend.vnet_header`.
        offloads: As `NetBackend.offloads`.
        links: How many it has at most.
    """

    def __init__(
        self, *, vnet_header: bool = False, offloads: Offload = NOTHING, links: int = 1
    ) -> None:
        self._vnet_header = vnet_header
        self._offloads = offloads
        self.links = [ScriptedLink() for _ in range(links)]
        self.held_open = False

    @property
    def link(self) -> ScriptedLink:
        """The first."""
        return self.links[0]

    @property
    def vnet_header(self) -> bool:
        """As `NetBackend.vnet_header`."""
        return self._vnet_header

    @property
    def offloads(self) -> Offload:
        """As `NetBackend.offloads`."""
        return self._offloads

    @asynccontextmanager
    async def lifespan(self, queues: int) -> NetLinks:
        """As `NetBackend.lifespan`."""
        self.held_open = True
        yield self.links[:queues]
        self.held_open = False


class NetDriver:
    """A guest's driver of a network card: its queues, in one memory.

    Args:
        features: What it negotiates, without the ring's.
        pairs: Of receive and transmit queues that it sets up.
        size: Of each queue.
    """

    def __init__(self, features: int = 0, *, pairs: int = 1, size: int = 256) -> None:
        self.memory = GuestMemory.anonymous(MEMORY_BYTES)
        self.features = features | RING_FEATURES
        heap = GuestHeap(4096, MEMORY_BYTES)

        def queue() -> QueueDriver:
            return QueueDriver(self.memory, heap=heap, size=size, features=self.features)

        pair_queues = [(queue(), queue()) for _ in range(pairs)]
        self.receive = [receive for receive, _ in pair_queues]
        self.transmit = [transmit for _, transmit in pair_queues]
        self.control = queue()
        self._waiting: list[UsedBuffer] = []
        self.config_changes = 0

    @property
    def rx(self) -> QueueDriver:
        """The first receive queue."""
        return self.receive[0]

    @property
    def tx(self) -> QueueDriver:
        """The first transmit queue."""
        return self.transmit[0]

    @property
    def queues(self) -> list[QueueDriver]:
        """All of them in the order of 5.1.2."""
        data = [q for pair in zip(self.receive, self.transmit, strict=True) for q in pair]
        return [*data, self.control] if self.features & F_CTRL_VQ else data

    async def drive(self, device: VirtioDevice) -> None:
        """Run the device on these queues."""
        await device.run(
            activation(*self.queues, features=self.features, config_changed=self._changed)
        )

    def _changed(self) -> None:
        self.config_changes += 1

    def send(self, frame: bytes, header: bytes = PLAIN, *, cut: Sequence[int] = ()) -> int:
        """Offer a frame, and ring; its bytes and the header's in pieces, cut at these places."""
        data = header + frame
        places = [0, *cut, len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(places)]
        head = self.tx.add(pieces)
        self.tx.kick()
        return head

    def offer(self, *sizes: int, queue: int = 0) -> None:
        """Offer receive buffers of these sizes, and ring."""
        receive = self.receive[queue]
        for size in sizes:
            receive.add(writable=[size])
        receive.kick()

    async def received(self, queue: int = 0) -> tuple[tuple[int, ...], bytes]:
        """The next frame's header, its fields, and the frame.

        A receive queue's buffers are taken together as num_buffers says, and all of them must be
        there at once (5.1.6.4.1).
        """
        waiting = self._waiting
        if not waiting:
            waiting += await self.receive[queue].wait_used()
        first = waiting.pop(0)
        header = HEADER.unpack_from(first.data)
        data = first.data[HEADER_BYTES:]
        count = header[-1]
        assert count == 1 or self.features & F_MRG_RXBUF
        assert count > 0
        for _ in range(count - 1):
            assert waiting, f"One frame of {count} buffers was not all there."
            data += waiting.pop(0).data
        return header, data

    async def command(self, *data: int | bytes) -> int:
        """Give a control command; its ack."""
        words = b"".join(bytes([d]) if isinstance(d, int) else d for d in data)
        used = await self.control.ask([words], [1])
        assert used.written == 1
        return used.data[0]


@asynccontextmanager
async def running(
    device: VirtioDevice,
    features: int = 0,
    *,
    pairs: int = 1,
    size: int = 256,
    before: Callable[[NetDriver], None] = lambda driver: None,
) -> AsyncIterator[NetDriver]:
    """A device with its driver; `before` is what the driver does before DRIVER_OK."""
    driver = NetDriver(features, pairs=pairs, size=size)
    before(driver)
    async with device.lifespan(), trio.open_nursery() as nursery:
        device.reset()
        nursery.start_soon(driver.drive, device)
        yield driver
        nursery.cancel_scope.cancel()
