"""Any bytes in the rings, tables and buffers: rows 17 to 30, 32 and 34 of the catalogue.

Whatever the driver writes, and whenever, the device gets buffers in RAM or a `QueueError`; it
does a bounded amount of work, writes only to the used ring and to buffers that it was given, and
interrupts exactly when the standard says so. Most of what is drawn is nearly right, since what is
all noise never comes past the first check.
"""

import contextlib
import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from microvm.errors import QueueError
from microvm.memory import GuestMemory
from microvm.testing.flipping import acting_between_steps
from microvm.testing.queue_driver import GuestHeap, QueueDriver
from microvm.virtio.chain import ChainReader, ChainWriter, DescriptorChain
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES, RING_INDIRECT_DESC
from microvm.virtio.queue import MAX_INDEX, VirtQueue

SIZE = 8
END = 0x1_0000
BUFFERS = 0x8000
TABLE = 0x9000
FEATURES = st.sampled_from(
    [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX, RING_FEATURES & ~RING_INDIRECT_DESC]
)
ADDRESSES = st.one_of(
    st.integers(BUFFERS, BUFFERS + 0x100),
    st.sampled_from([TABLE, TABLE + 16, END - 16, END - 1, END]),
    st.integers(0, (1 << 64) - 1),
)
LENGTHS = st.one_of(
    st.integers(0, 32), st.sampled_from([16, 32, 48, 128]), st.integers(0, (1 << 32) - 1)
)
FLAGS = st.one_of(st.sampled_from([0, 1, 1, 2, 3, 4]), st.integers(0, 0xFFFF))
LINKS = st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF))
DESCRIPTORS = st.builds(struct.Struct("<QIHH").pack, ADDRESSES, LENGTHS, FLAGS, LINKS)
WORDS = st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF))


def new_driver(features: int) -> QueueDriver:
    return QueueDriver(
        GuestMemory.anonymous(END), heap=GuestHeap(0x1000, BUFFERS), size=SIZE, features=features
    )


class AnyRings(RuleBasedStateMachine):
    """A driver that writes what it likes, and a device that serves it in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = new_driver(RING_FEATURES)
        self.memory = self.driver.memory
        self.queue: VirtQueue = self.driver.queue()
        self.held: list[DescriptorChain] = []
        self.used_since_asked: list[int] = []

    # --- the driver ------------------------------------------------------------------------

    @rule(features=FEATURES)
    def begin_anew(self, features: int) -> None:
        self.driver.restart()
        self.driver.features = features
        self.queue = self.driver.queue()
        self.held.clear()
        self.used_since_asked.clear()

    @rule(index=st.integers(0, SIZE - 1), descriptor=DESCRIPTORS)
    def write_a_descriptor(self, index: int, descriptor: bytes) -> None:
        self.memory.write(self.driver.layout.desc + 16 * index, descriptor)

    @rule(table=st.lists(DESCRIPTORS, min_size=1, max_size=SIZE + 1))
    def write_an_indirect_table(self, table: list[bytes]) -> None:
        self.memory.write(TABLE, b"".join(table))

    @rule(heads=st.lists(WORDS, min_size=1, max_size=SIZE))
    def offer(self, heads: list[int]) -> None:
        for head in heads:
            self.driver.offer(head)

    @rule(ahead=WORDS)
    def move_the_index(self, ahead: int) -> None:
        self.driver.avail_idx += ahead

    @rule(word=st.integers(0, SIZE + 2), value=WORDS)
    def write_a_word_of_the_available_ring(self, word: int, value: int) -> None:
        self.memory.store_u16(self.driver.layout.avail + 2 * word, value)

    @rule(word=st.integers(0, 4 * SIZE + 2), value=WORDS)
    def write_a_word_of_the_used_ring(self, word: int, value: int) -> None:
        self.memory.store_u16(self.driver.layout.used + 2 * word, value)

    # --- the device ------------------------------------------------------------------------

    @rule()
    def pop(self) -> None:
        before = self.memory.read(0, END)
        held = len(self.held)
        try:
            for chain in self.queue.pop_all():
                assert chain.readable_len == sum(map(len, chain.readable))
                assert chain.writable_len == sum(map(len, chain.writable))
                assert chain.readable_len + chain.writable_len < 1 << 32
                assert len(chain.readable) + len(chain.writable) <= SIZE
                self.held.append(chain)
        except QueueError as error:
            assert error.message.endswith(".")  # noqa: PT017 - what came before it counts too
        assert len(self.held) - held <= SIZE
        assert self.queue.in_flight == len(self.held) <= SIZE
        self._only_the_used_ring_changed(before)

    @rule(which=st.integers(0, SIZE - 1), answer=st.binary(max_size=64))
    def serve(self, which: int, answer: bytes) -> None:
        if not self.held:
            return
        chain = self.held.pop(which % len(self.held))
        reader, writer = ChainReader(chain), ChainWriter(chain)
        if chain.readable_len <= END:
            assert len(reader.read(reader.remaining)) == chain.readable_len
        room = chain.writable_len
        assert writer.write(answer) == min(len(answer), room)
        self.used_since_asked.append(self.queue._used_idx)
        self.queue.add_used(chain.head, writer.written)
        layout, slot = self.driver.layout, self.used_since_asked[-1] & (SIZE - 1)
        element = self.memory.read(layout.used + 4 + 8 * slot, 8)
        assert struct.unpack("<II", element) == (chain.head, min(len(answer), room))
        assert self.memory.load_u16(layout.used + 2) == (self.used_since_asked[-1] + 1) & MAX_INDEX

    @rule()
    def ask_whether_to_interrupt(self) -> None:
        layout = self.driver.layout
        if not self.used_since_asked:
            expected = False
        elif self.driver.features & RING_EVENT_IDX:
            used_event = self.memory.load_u16(layout.avail + 4 + 2 * SIZE)
            expected = used_event in self.used_since_asked
        else:
            expected = not self.memory.load_u16(layout.avail) & 1
        assert self.queue.needs_notification() == expected
        self.used_since_asked.clear()

    @rule(silence=st.booleans())
    def tell_the_driver_when_to_ring(self, silence: bool) -> None:
        before = self.memory.read(0, END)
        if silence:
            self.queue.disable_notification()
        else:
            avail_idx = self.memory.load_u16(self.driver.layout.avail + 2)
            assert self.queue.enable_notification() == (avail_idx != self.queue.next_avail)
        self._only_the_used_ring_changed(before)

    @rule()
    def pause_and_go_on(self) -> None:
        self.queue.rewind()
        assert self.queue.in_flight <= len(self.held)
        # What the rings say now is another matter: the transport begins anew or keeps the queue.
        self.held = [chain for chain in self.held if self._has(chain)]
        assert self.queue.in_flight == len(self.held)

    def _has(self, chain: DescriptorChain) -> bool:
        return self.queue._in_flight[chain.head] is not None

    def _only_the_used_ring_changed(self, before: bytes) -> None:
        layout = self.driver.layout
        after = self.memory.read(0, END)
        assert after[: layout.used] == before[: layout.used]
        assert after[layout.used + layout.used_bytes :] == before[layout.used + layout.used_bytes :]


TestAnyRings = AnyRings.TestCase
TestAnyRings.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


# --- rings that change between any two steps of the device (29) --------------------------------

PLACES = st.one_of(
    st.tuples(st.integers(0, 16 * SIZE - 1).map(lambda at: 0x1000 + at), st.binary(max_size=16)),
    st.tuples(st.integers(0, SIZE - 1).map(lambda index: 0x1000 + 16 * index), DESCRIPTORS),
    st.tuples(st.integers(0, SIZE).map(lambda index: TABLE + 16 * index), DESCRIPTORS),
    st.tuples(st.integers(0, 2 * SIZE + 4).map(lambda at: 0x2000 + at), st.binary(max_size=4)),
    st.tuples(st.integers(0, 8 * SIZE + 4).map(lambda at: 0x3000 + at), st.binary(max_size=8)),
)


@settings(max_examples=200, deadline=None)
@given(
    features=FEATURES,
    chains=st.lists(st.tuples(DESCRIPTORS, DESCRIPTORS), min_size=1, max_size=SIZE),
    writes=st.lists(PLACES, min_size=1, max_size=12),
)
def test_29_rings_rewritten_at_every_step_lead_nowhere_but_to_ram_or_an_error(
    features: int, chains: list[tuple[bytes, bytes]], writes: list[tuple[int, bytes]]
) -> None:
    driver = new_driver(features)
    layout = driver.layout
    assert (layout.desc, layout.avail, layout.used) == (0x1000, 0x2000, 0x3000)
    for index, (descriptor, inner) in enumerate(chains):
        driver.memory.write(layout.desc + 16 * index, descriptor)
        driver.memory.write(TABLE + 16 * index, inner)
        driver.offer(index)
    queue = driver.queue()
    turns = itertools.cycle(writes)

    def rewrite(step: int) -> None:
        if step % 3 == 0:
            driver.memory.write(*next(turns))

    with contextlib.suppress(QueueError), acting_between_steps(rewrite):
        answer_rounds(queue, 3)
    assert queue.in_flight <= SIZE


def answer_rounds(queue: VirtQueue, rounds: int) -> None:
    """A device: at most `rounds` looks at a driver that offers without end."""
    for _ in range(rounds):
        queue.disable_notification()
        for chain in queue.pop_all():
            reader, writer = ChainReader(chain), ChainWriter(chain)
            assert reader.remaining + writer.remaining < 1 << 32
            writer.write(reader.read(min(reader.remaining, 64)))
            queue.add_used(chain.head, writer.written)
        queue.needs_notification()
        if not queue.enable_notification():
            return
