"""The guest's half of a split virtqueue, for tests of devices and transports.

`QueueDriver` lays out rings and buffers in real `GuestMemory` and does what a driver does, and,
by raw writes, what a driver must not do. A device test reads from top to bottom::

    requests = QueueDriver()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run, activation(requests))
        requests.add([b"question"], [64])
        requests.kick()
        await requests.irq.wait()
        assert requests.used() == [UsedBuffer(head=0, written=6, data=b"answer")]
        nursery.cancel_scope.cancel()

It does not copy how the device side is written: it goes by the standard (virtio 1.2, 2.7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import trio

from microvm.abc import Activation, ActiveQueue, Doorbell, IrqLine
from microvm.memory import GuestMemory
from microvm.virtio.chain import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES
from microvm.virtio.fence import fence
from microvm.virtio.queue import QueueLayout, VirtQueue

DEFAULT_MEMORY_BYTES = 16 * 1024 * 1024
_PAGE = 4096


class FakeDoorbell(Doorbell):
    """A doorbell that the test rings. `rings` counts."""

    def __init__(self) -> None:
        self.rings = 0
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake the device, now or at its next `wait`."""
        self.rings += 1
        self._rung.set()

    async def wait(self) -> None:
        """As `Doorbell.wait`."""
        await self._rung.wait()
        self._rung = trio.Event()


class FakeIrqLine(IrqLine):
    """An interrupt line that the test watches. `triggers` counts."""

    def __init__(self) -> None:
        self.triggers = 0
        self._raised = trio.Event()

    def trigger(self) -> None:
        """As `IrqLine.trigger`."""
        self.triggers += 1
        self._raised.set()

    async def wait(self) -> None:
        """Return once it has been triggered since the last return."""
        await self._raised.wait()
        self._raised = trio.Event()


@attrs.frozen(kw_only=True)
class UsedBuffer:
    """A chain that the device has handed back."""

    head: int
    written: int
    """As the device said."""
    data: bytes
    """The first `written` bytes of the chain's writable buffers."""


@attrs.frozen(kw_only=True)
class _Offered:
    descriptors: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]


class GuestHeap:
    """Hands out guest memory for buffers: blocks of powers of two, taken back and reused."""

    def __init__(self, start: int, end: int) -> None:
        self._next = start
        self._end = end
        self._free: dict[int, list[int]] = {}

    def take(self, length: int, alignment: int = 16) -> tuple[int, int]:
        """The address and size of a block of `length` bytes or more."""
        size = max(alignment, 16, 1 << (length - 1).bit_length() if length else 0)
        blocks = self._free.get(size)
        if blocks:
            return blocks.pop(), size
        address = -(-self._next // alignment) * alignment
        if address + size > self._end:
            raise MemoryError("The driver's heap is full: give QueueDriver more memory.")
        self._next = address + size
        return address, size

    def give_back(self, block: tuple[int, int]) -> None:
        """Take back what `take` returned."""
        address, size = block
        self._free.setdefault(size, []).append(address)


class QueueDriver:
    """One virtqueue, from the driver's end.

    Args:
        memory: The guest's RAM; 16 MiB of its own by default.
        heap: Where rings and buffers are taken from; all of the memory's first region by
            default. Several drivers on one memory share one heap.
        size: Queue size.
        features: What was negotiated.
        doorbell: What `kick` rings.
        irq: Where the device's interrupts come out.
    """

    def __init__(
        self,
        memory: GuestMemory | None = None,
        *,
        heap: GuestHeap | None = None,
        size: int = 16,
        features: int = RING_FEATURES,
        doorbell: FakeDoorbell | None = None,
        irq: FakeIrqLine | None = None,
    ) -> None:
        self.memory = memory or GuestMemory.anonymous(DEFAULT_MEMORY_BYTES)
        if heap is None:
            region = self.memory.regions[0]
            # The zero page stays empty, as in any guest.
            heap = GuestHeap(max(region.start, _PAGE), region.end)
        self.heap = heap
        self.size = size
        self.features = features
        self.doorbell = doorbell or FakeDoorbell()
        self.irq = irq or FakeIrqLine()
        self.layout = QueueLayout(
            size=size,
            desc=heap.take(16 * size, _PAGE)[0],
            avail=heap.take(6 + 2 * size, _PAGE)[0],
            used=heap.take(6 + 8 * size, _PAGE)[0],
        )
        layout = self.layout
        self._avail = self.memory.slice(layout.avail, layout.avail_bytes).cast("H")
        used = self.memory.slice(layout.used, layout.used_bytes)
        self._used = used.cast("H")
        self._used_ring = used[4 : 4 + 8 * size].cast("I")
        self.restart()

    def restart(self) -> None:
        """Begin anew, as after a reset of the device: empty rings, every descriptor free."""
        layout = self.layout
        for address, length in (
            (layout.desc, layout.desc_bytes),
            (layout.avail, layout.avail_bytes),
            (layout.used, layout.used_bytes),
        ):
            self.memory.write(address, bytes(length))
        self._free = list(range(self.size))[::-1]
        self._offered: dict[int, _Offered] = {}
        self._avail_idx = 0
        self._kicked_idx = 0
        self._used_idx = 0

    def begin_at(self, index: int) -> None:
        """Move every index of the empty queue there, as after so many requests."""
        self.avail_idx = self._kicked_idx = index
        self._used_idx = self._used[1] = index

    # --- the device's half ---------------------------------------------------------------

    def queue(self, *, next_avail: int = 0) -> VirtQueue:
        """A new device side of this queue."""
        return VirtQueue(self.memory, self.layout, features=self.features, next_avail=next_avail)

    def active(self) -> ActiveQueue:
        """A new device side with this driver's doorbell and interrupt."""
        return ActiveQueue(queue=self.queue(), doorbell=self.doorbell, irq=self.irq)

    # --- offering buffers ----------------------------------------------------------------

    @property
    def free_descriptors(self) -> int:
        """How many descriptors of the table are not in use."""
        return len(self._free)

    def add(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> int:
        """Offer a chain: buffers with these contents, then buffers of these lengths.

        Does not ring: see `kick`.

        Returns:
            The chain's head.
        """
        blocks: list[tuple[int, int]] = []
        buffers: list[tuple[int, int, int]] = []
        for data in readable:
            block = self.heap.take(len(data))
            blocks.append(block)
            self.memory.write(block[0], data)
            buffers.append((block[0], len(data), 0))
        for length in writable:
            block = self.heap.take(length)
            blocks.append(block)
            buffers.append((block[0], length, DESC_F_WRITE))
        if not buffers:
            raise ValueError("A chain needs a buffer.")
        if indirect:
            table = self.heap.take(16 * len(buffers))
            blocks.append(table)
            for position, (address, length, flags) in enumerate(buffers):
                more = DESC_F_NEXT if position + 1 < len(buffers) else 0
                entry = DESCRIPTOR.pack(address, length, flags | more, position + 1 if more else 0)
                self.memory.write(table[0] + 16 * position, entry)
            buffers = [(table[0], 16 * len(buffers), DESC_F_INDIRECT)]
        if len(buffers) > len(self._free):
            raise ValueError(f"{len(buffers)} descriptors wanted, {len(self._free)} are free.")
        indexes = tuple(self._free.pop() for _ in buffers)
        for position, (address, length, flags) in enumerate(buffers):
            following = 0
            if position + 1 < len(buffers):
                flags |= DESC_F_NEXT
                following = indexes[position + 1]
            self.write_descriptor(indexes[position], address, length, flags, following)
        self._offered[indexes[0]] = _Offered(
            descriptors=indexes,
            blocks=tuple(blocks),
            writable=tuple(
                (block[0], length)
                for block, length in zip(blocks[len(readable) :], writable, strict=False)
            ),
        )
        self.offer(indexes[0])
        return indexes[0]

    def writable_of(self, head: int) -> tuple[tuple[int, int], ...]:
        """Addresses and lengths of the writable buffers of a chain that is not used yet."""
        return self._offered[head].writable

    def write_descriptor(
        self, index: int, address: int, length: int, flags: int, following: int = 0
    ) -> None:
        """Write one descriptor of the table, as it is given: legal or not."""
        entry = DESCRIPTOR.pack(address, length, flags, following)
        self.memory.write(self.layout.desc + 16 * index, entry)

    def offer(self, head: int) -> None:
        """Put a head into the available ring, and move its index on."""
        self._avail[2 + (self._avail_idx & (self.size - 1))] = head
        self.avail_idx = self._avail_idx + 1

    @property
    def avail_idx(self) -> int:
        """The available ring's index; assigning moves it anywhere."""
        return self._avail_idx

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self._avail_idx = self._avail[1] = value & 0xFFFF

    # --- notifications -------------------------------------------------------------------

    @property
    def wants_kick(self) -> bool:
        """Whether the device asks for a notification of what was offered since the last kick.

        2.7.10.1 Driver Requirements: Available Buffer Notification Suppression.
        """
        fence()
        offered = (self._avail_idx - self._kicked_idx) & 0xFFFF
        if self.features & RING_EVENT_IDX:
            return (self._avail_idx - self.avail_event - 1) & 0xFFFF < offered
        return offered > 0 and not self.used_flags & 1

    def kick(self) -> bool:
        """Ring the doorbell if the device wants it, and say whether that was done."""
        wanted = self.wants_kick
        self._kicked_idx = self._avail_idx
        if wanted:
            self.doorbell.ring()
        return wanted

    @property
    def avail_event(self) -> int:
        """The index at which the device wants to be notified (RING_EVENT_IDX)."""
        return self._used[2 + 4 * self.size]

    @property
    def used_flags(self) -> int:
        """The used ring's flags; 1 is NO_NOTIFY."""
        return self._used[0]

    @property
    def avail_flags(self) -> int:
        """The available ring's flags; 1 is NO_INTERRUPT."""
        return self._avail[0]

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self._avail[0] = value

    @property
    def used_event(self) -> int:
        """The used index whose passing is to be interrupted for (RING_EVENT_IDX)."""
        return self._avail[2 + self.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._avail[2 + self.size] = value & 0xFFFF

    def want_interrupt(self) -> bool:
        """Ask for an interrupt at the next used buffer; True if there is one already."""
        self.used_event = self._used_idx
        fence()
        return self._used[1] != self._used_idx

    # --- used buffers --------------------------------------------------------------------

    def used(self) -> list[UsedBuffer]:
        """What the device has handed back since the last call; its descriptors are free again.

        Raises:
            AssertionError: the device broke a rule: it used a chain that it did not have, or
                claims more bytes than fit.
        """
        buffers: list[UsedBuffer] = []
        while self._used_idx != self._used[1]:
            slot = 2 * (self._used_idx & (self.size - 1))
            head, written = self._used_ring[slot], self._used_ring[slot + 1]
            self._used_idx = (self._used_idx + 1) & 0xFFFF
            offered = self._offered.pop(head, None)
            assert offered is not None, f"The device used chain {head}, which it did not have."
            assert written <= sum(length for _, length in offered.writable), (
                f"The device says it wrote {written} bytes to chain {head}: more than fit."
            )
            buffers.append(
                UsedBuffer(head=head, written=written, data=self._gather(offered, written))
            )
            self._free.extend(reversed(offered.descriptors))
            for block in offered.blocks:
                self.heap.give_back(block)
        return buffers

    def used_elements(self) -> list[tuple[int, int]]:
        """As `used`, but heads and lengths alone: for chains that a test has written itself."""
        elements: list[tuple[int, int]] = []
        while self._used_idx != self._used[1]:
            slot = 2 * (self._used_idx & (self.size - 1))
            elements.append((self._used_ring[slot], self._used_ring[slot + 1]))
            self._used_idx = (self._used_idx + 1) & 0xFFFF
        return elements

    async def wait_used(self, count: int = 1) -> list[UsedBuffer]:
        """Wait until the device has handed back so many or more, and return them."""
        buffers = self.used()
        while len(buffers) < count:
            if not self.want_interrupt():
                await self.irq.wait()
            buffers += self.used()
        return buffers

    async def ask(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> UsedBuffer:
        """Offer one chain, ring, and wait for it to come back: the queue was empty before."""
        self.add(readable, writable, indirect=indirect)
        self.kick()
        (used,) = await self.wait_used()
        return used

    def release(self) -> None:
        """Let go of the rings' memory, so that its mapping can be closed."""
        for view in (self._avail, self._used, self._used_ring):
            view.release()

    def _gather(self, offered: _Offered, left: int) -> bytes:
        parts: list[bytes] = []
        for address, length in offered.writable:
            part = self.memory.read(address, min(length, left))
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def activation(
    *drivers: QueueDriver,
    features: int | None = None,
    config_changed: Callable[[], None] = lambda: None,
) -> Activation:
    """What a device gets at DRIVER_OK, its queues those of `drivers` by index.

    Args:
        drivers: One a queue; on one memory.
        features: What was negotiated; by default the first driver's.
        config_changed: Called when the device tells of a change of its configuration space.
    """
    if features is None:
        features = drivers[0].features
    return Activation(
        features=features,
        queues=tuple(driver.active() for driver in drivers),
        memory=drivers[0].memory,
        config_changed=config_changed,
    )
