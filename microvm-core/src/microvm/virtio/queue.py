"""The split virtqueue, device side (virtio 1.2, 2.7 Split Virtqueues), without any IO.

A queue is handed to a device's task, which owns it alone; nothing here is locked. What the
driver can do wrong in the rings ends in a `QueueError` with the reason, after bounded work.

Each index is loaded and stored as one aligned access of two bytes (a memoryview cast to ``H``,
see `microvm.memory`). Loads and stores stand in the order the standard asks for, and `fence`
stands where that order is not the machine's own (see `microvm.virtio.fence`).

Who rings when. Without EVENT_IDX the flags words ask for peace and quiet; with it the two
words behind the rings name the index whose passing is to be told. As long as notifications are
enabled, which they are at first, `pop` names the next index before it says that there is
nothing, so that a doorbell always follows. A device that expects many buffers at once silences
the driver while it works::

    while True:
        await doorbell.wait()
        busy = True
        while busy:
            queue.disable_notification()
            for chain in queue.pop_all():
                queue.add_used(chain.head, serve(chain))
            if queue.needs_notification():
                irq.trigger()
            await trio.lowlevel.checkpoint()  # a driver may offer without end
            busy = queue.enable_notification()
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from microvm.errors import GuestMemoryError, QueueError
from microvm.virtio.chain import DescriptorChain, walk_chain
from microvm.virtio.features import RING_EVENT_IDX, RING_INDIRECT_DESC
from microvm.virtio.fence import fence

if TYPE_CHECKING:
    from microvm.memory import GuestMemory

MAX_QUEUE_SIZE: Final = 32768

AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1

# Both rings begin with flags and idx, of two bytes each; positions are in units of two bytes.
_FLAGS: Final = 0
_IDX: Final = 1
_RING: Final = 2

MAX_INDEX: Final = 0xFFFF
"""Ring indexes are of 16 bits and wrap; they are not taken modulo the size (2.7.6, 2.7.8)."""


@attrs.frozen(kw_only=True)
class QueueLayout:
    """Where the driver has put a queue's three parts, and its size.

    Raises:
        QueueError: the size is not a power of two up to 32768 (2.7 Split Virtqueues), an
            address is not aligned (2.7, table of alignments: 16, 2, 4), or two parts overlap.
    """

    size: int
    """Descriptors."""
    desc: int
    """Guest physical address of the descriptor table (Descriptor Area)."""
    avail: int
    """Guest physical address of the available ring (Driver Area)."""
    used: int
    """Guest physical address of the used ring (Device Area)."""

    def __attrs_post_init__(self) -> None:
        size = self.size
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise QueueError(f"A queue of size {size}: not a power of two up to {MAX_QUEUE_SIZE}.")
        for name, address, alignment in (
            ("descriptor table", self.desc, 16),
            ("available ring", self.avail, 2),
            ("used ring", self.used, 4),
        ):
            if address < 0 or address % alignment:
                raise QueueError(f"The {name} at {address:#x} is not aligned to {alignment}.")
        parts = sorted(
            (
                (self.desc, self.desc_bytes),
                (self.avail, self.avail_bytes),
                (self.used, self.used_bytes),
            )
        )
        for (left, length), (right, _) in itertools.pairwise(parts):
            if left + length > right:
                raise QueueError(f"Parts of a queue overlap at {right:#x}.")

    @property
    def desc_bytes(self) -> int:
        """Size of the descriptor table."""
        return 16 * self.size

    @property
    def avail_bytes(self) -> int:
        """Size of the available ring: flags, idx, one u16 a descriptor, used_event."""
        return 6 + 2 * self.size

    @property
    def used_bytes(self) -> int:
        """Size of the used ring: flags, idx, id and len a descriptor, avail_event."""
        return 6 + 8 * self.size


class VirtQueue:
    """One split virtqueue, from the device's end.

    Args:
        memory: The guest's RAM, where rings and buffers are.
        layout: The rings' place.
        features: What was negotiated; RING_EVENT_IDX and RING_INDIRECT_DESC matter here.
        next_avail: The available ring's index to go on from: 0 but for a queue that is resumed.

    Raises:
        QueueError: a part of the queue is not RAM.
    """

    __slots__ = (
        "_avail",
        "_desc",
        "_event_idx",
        "_in_flight",
        "_in_flight_count",
        "_indirect",
        "_mask",
        "_memory",
        "_next_avail",
        "_notify_enabled",
        "_seen_avail",
        "_unsignalled",
        "_used",
        "_used_idx",
        "_used_ring",
        "layout",
        "size",
    )

    def __init__(
        self, memory: GuestMemory, layout: QueueLayout, *, features: int, next_avail: int = 0
    ) -> None:
        size = layout.size
        try:
            self._desc = memory.slice(layout.desc, layout.desc_bytes)
            self._avail = memory.slice(layout.avail, layout.avail_bytes).cast("H")
            used = memory.slice(layout.used, layout.used_bytes)
        except GuestMemoryError as error:
            raise QueueError(f"A queue's rings must be in RAM. {error.message}") from error
        self._used = used.cast("H")
        # An element is two u32, `id` then `len`; together one little-endian u64.
        self._used_ring = used[4 : 4 + 8 * size].cast("Q")
        self._memory = memory
        self.layout = layout
        self.size = size
        self._mask = size - 1
        self._event_idx = bool(features & RING_EVENT_IDX)
        self._indirect = bool(features & RING_INDIRECT_DESC)
        self._next_avail = self._seen_avail = next_avail & MAX_INDEX
        self._used_idx = self._used[_IDX]
        self._notify_enabled = True
        # For each head, the writable bytes of its chain while it is in flight, else None.
        self._in_flight: list[int | None] = [None] * size
        self._in_flight_count = 0
        # A queue that goes on may owe the driver a notification: the first one is not withheld.
        self._unsignalled = MAX_INDEX + 1 if self._next_avail or self._used_idx else 0

    @property
    def next_avail(self) -> int:
        """The available ring's index of the chain that `pop` returns next."""
        return self._next_avail

    @property
    def in_flight(self) -> int:
        """How many chains were popped and not used yet; never more than `size`."""
        return self._in_flight_count

    def pop(self) -> DescriptorChain | None:
        """The next chain that the driver has made available, or None.

        None while notifications are enabled means that the doorbell will ring.

        Raises:
            QueueError: the driver broke a rule. The queue is of no use until the next reset.
        """
        position = self._next_avail
        if position == self._seen_avail and not self._look():
            return None
        head = self._avail[_RING + (position & self._mask)]
        if head > self._mask:
            raise QueueError(f"The driver offers chain {head} of a queue of {self.size}.")
        in_flight = self._in_flight
        if in_flight[head] is not None:
            raise QueueError(f"The driver offers chain {head} while the device still has it.")
        chain = walk_chain(self._memory, self._desc, head, self.size, indirect=self._indirect)
        in_flight[head] = chain.writable_len
        self._in_flight_count += 1
        self._next_avail = (position + 1) & MAX_INDEX
        return chain

    def _look(self) -> bool:
        """Load the driver's index; say whether there is anything new."""
        pending = (self._avail[_IDX] - self._next_avail) & MAX_INDEX
        if not pending and self._notify_enabled and self._event_idx:
            # avail_event is stale by now: name the next index, and look once more after it.
            self._used[_RING + 4 * self.size] = self._next_avail
            fence()
            pending = (self._avail[_IDX] - self._next_avail) & MAX_INDEX
        if pending > self.size:
            raise QueueError(f"The driver's index runs {pending} ahead in a queue of {self.size}.")
        self._seen_avail = (self._next_avail + pending) & MAX_INDEX
        return bool(pending)

    def pop_all(self) -> Iterator[DescriptorChain]:
        """The chains that are there now, at most `size`: a driver can't keep its host here.

        Ask `enable_notification` after it whether there is more.

        Raises:
            QueueError: as `pop`.
        """
        for _ in range(self.size):
            chain = self.pop()
            if chain is None:
                return
            yield chain

    def add_used(self, head: int, written: int) -> None:
        """Hand a chain back to the driver.

        Args:
            head: `DescriptorChain.head`.
            written: The bytes written to its writable buffers, counted from the first
                (2.7.8.1 Device Requirements: The Virtqueue Used Ring).

        Raises:
            ValueError: the device has no such chain, or it can't hold so many bytes: a bug of
                the device, not of the guest.
        """
        capacity = self._in_flight[head] if 0 <= head <= self._mask else None
        if capacity is None:
            raise ValueError(f"Chain {head} is not in flight.")
        if not 0 <= written <= capacity:
            raise ValueError(f"Chain {head} holds {capacity} bytes, not {written}.")
        self._in_flight[head] = None
        self._in_flight_count -= 1
        position = self._used_idx
        self._used_ring[position & self._mask] = written << 32 | head
        # The index last: it makes the element the driver's (2.7.8.1).
        self._used_idx = self._used[_IDX] = (position + 1) & MAX_INDEX
        self._unsignalled += 1

    def add_used_together(self, used: Sequence[tuple[int, int]]) -> None:
        """Hand several chains back so that the driver sees all of them or none.

        For what lies in several chains (5.1.6.4.1: a frame in several receive buffers), and for
        batches: the index is stored once.

        Args:
            used: `head` and `written` of each, as in `add_used`.

        Raises:
            ValueError: as `add_used`. The queue is of no use any more.
        """
        position, mask, ring, in_flight = (
            self._used_idx,
            self._mask,
            self._used_ring,
            self._in_flight,
        )
        for head, written in used:
            capacity = in_flight[head] if 0 <= head <= mask else None
            if capacity is None:
                raise ValueError(f"Chain {head} is not in flight.")
            if not 0 <= written <= capacity:
                raise ValueError(f"Chain {head} holds {capacity} bytes, not {written}.")
            in_flight[head] = None
            ring[position & mask] = written << 32 | head
            position += 1
        self._in_flight_count -= len(used)
        self._used_idx = self._used[_IDX] = position & MAX_INDEX
        self._unsignalled += len(used)

    def needs_notification(self) -> bool:
        """Whether the driver wants an interrupt for what was used since the last call.

        Call once after a batch of `add_used`, and interrupt if so.
        """
        unsignalled = self._unsignalled
        if not unsignalled:
            return False
        self._unsignalled = 0
        # Our used.idx must be seen before the driver's wish is read (2.7.7.2, 2.7.13.4).
        fence()
        if self._event_idx:
            # used_event among the indexes used since the last call, those being taken modulo
            # 2^16 but their number not: a batch of 2^16 or more contains every index.
            used_event = self._avail[_RING + self.size]
            return (self._used_idx - used_event - 1) & MAX_INDEX < unsignalled
        return not self._avail[_FLAGS] & AVAIL_F_NO_INTERRUPT

    def disable_notification(self) -> None:
        """Ask the driver not to ring while we are looking anyway. A hint: it may still."""
        self._notify_enabled = False
        if not self._event_idx:
            self._used[_FLAGS] = USED_F_NO_NOTIFY
        # With EVENT_IDX it stays silent of itself: avail_event is behind its index.

    def enable_notification(self) -> bool:
        """Ask the driver to ring again.

        Returns:
            True if buffers came meanwhile, for which no doorbell may ever ring: look again.
        """
        self._notify_enabled = True
        if self._event_idx:
            self._used[_RING + 4 * self.size] = self._next_avail
        else:
            self._used[_FLAGS] = 0
        # Our wish must be seen before the driver's index is read (2.7.10.2).
        fence()
        return self._avail[_IDX] != self._next_avail

    def rewind(self) -> None:
        """Put back what was popped last and not used: it is offered again when the queue goes on.

        For the transport, when a run has ended. Chains popped before one that was used stay
        lost to the driver until it resets the device; a device that uses buffers in order
        loses none.
        """
        avail, in_flight, mask = self._avail, self._in_flight, self._mask
        while self._in_flight_count:
            position = (self._next_avail - 1) & MAX_INDEX
            head = avail[_RING + (position & mask)]
            if head > mask or in_flight[head] is None:
                return
            in_flight[head] = None
            self._in_flight_count -= 1
            self._next_avail = self._seen_avail = position

    def release(self) -> None:
        """Let go of the rings' memory. Whoever uses the queue afterwards gets a `ValueError`."""
        for view in (self._desc, self._avail, self._used, self._used_ring):
            view.release()
