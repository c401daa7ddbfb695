"""A guest that does anything to a device in use: rows 2 to 14, 17 to 28 and 33 of the catalogue.

The rules below are a vCPU's thread; the device runs on a trio thread of its own, as in a machine.
What must hold: no access raises or hangs, the status is one that a driver may see, after a reset
the device is quiet, and a driver that then behaves is served.
"""

import threading
import time
from collections.abc import Callable

import attrs
import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from microvm._loop_calls import LoopCalls
from microvm.testing.mmio_bench import MEMORY_BYTES, Bench, UpperDevice, build
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES, RING_INDIRECT_DESC
from microvm.virtio.mmio import registers, transport

REGISTERS = st.sampled_from(sorted({*transport._READERS, *transport._WRITERS}))
OFFSETS = st.one_of(REGISTERS, REGISTERS, st.integers(0, 0xFFF))
SIZES = st.one_of(st.just(4), st.sampled_from([1, 2, 4, 8]))
VALUES = st.one_of(
    st.integers(0, 0x1F),
    st.integers(0, 0xFFFF_FFFF),
    st.sampled_from([0, 1, 3, 11, 15, 0x4F, 0x8F, 0x80, 0xFF]),
)
ANSWER_WITHIN_S = 10


@attrs.define
class Loop:
    """A trio thread that serves a bench, and how it ended."""

    bench: Bench[UpperDevice]
    thread: threading.Thread = attrs.field(init=False)
    token: trio.lowlevel.TrioToken = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    started: threading.Event = attrs.field(factory=threading.Event)
    ended_by: BaseException | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.started.wait(ANSWER_WITHIN_S)

    def stop(self) -> None:
        self.token.run_sync_soon(self.scope.cancel)
        self.thread.join(ANSWER_WITHIN_S)
        assert not self.thread.is_alive()
        assert self.ended_by is None

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self.ended_by = error
        finally:
            self.bench.calls.close()

    async def _serve(self) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.bench.transport.serve)
                self.token = trio.lowlevel.current_trio_token()
                self.bench.calls.attach(self.token)
                self.started.set()


class AnyGuest(RuleBasedStateMachine):
    """A vCPU."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = build(UpperDevice(queues=2), calls=LoopCalls())
        self.driver = self.bench.driver
        self.range_lock = threading.Lock()
        self.loop = Loop(self.bench)
        self.loop.start()

    def teardown(self) -> None:
        try:
            self.a_driver_that_behaves_is_served(RING_FEATURES)
        finally:
            self.loop.stop()

    @invariant()
    def the_device_lives_and_its_status_is_legal(self) -> None:
        assert self.loop.ended_by is None
        status = self.driver.status
        assert status & 0x0F in {0, 1, 3, 11, 15}
        assert status & ~0xCF == 0

    # --- registers ---------------------------------------------------------------------------

    @rule(offset=OFFSETS, size=SIZES, value=VALUES)
    def write(self, offset: int, size: int, value: int) -> None:
        if offset + size <= 0x1000:
            self.bench.transport.write(offset, size, value & ((1 << 8 * size) - 1))

    @rule(offset=OFFSETS, size=SIZES)
    def read(self, offset: int, size: int) -> None:
        if offset + size <= 0x1000:
            assert 0 <= self.bench.transport.read(offset, size) < 1 << 8 * size

    @rule(cpus=st.integers(1, 2))
    def reset(self, cpus: int) -> None:
        def locked() -> None:
            with self.range_lock:  # as the bus does
                self.driver.reset()

        others = [threading.Thread(target=locked) for _ in range(cpus - 1)]
        for other in others:
            other.start()
        locked()
        for other in others:
            other.join()
        assert self.driver.status == 0
        assert self.driver.read(registers.INTERRUPT_STATUS) == 0
        assert not self.bench.device.running

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.001]))
    def let_the_devices_end_take(self, seconds: float) -> None:
        self.bench.device.end_takes_s = seconds

    @rule()
    def pause(self) -> None:
        """By the machine, which has stopped its vCPUs."""
        trio.from_thread.run(self.bench.transport.quiesce, trio_token=self.loop.token)
        assert not self.bench.device.running
        before = self.bench.memory.read(0, MEMORY_BYTES)
        self.driver.notify(0)
        trio.from_thread.run_sync(self.bench.transport.config_changed, trio_token=self.loop.token)
        assert self.bench.memory.read(0, MEMORY_BYTES) == before
        trio.from_thread.run_sync(self.bench.transport.resume, trio_token=self.loop.token)

    # --- a driver, good and bad --------------------------------------------------------------

    @rule(
        features=st.sampled_from(
            [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX, RING_FEATURES & ~RING_INDIRECT_DESC]
        ),
        ready=st.integers(0, 2),
    )
    def initialize(self, features: int, ready: int) -> None:
        self.driver.reset()
        for queue in self.bench.queues:
            queue.restart()
            queue.features = features
        self.driver.initialize([queue.layout for queue in self.bench.queues[:ready]], features)
        assert self.driver.status & 0x0F == 15

    @rule(queue=st.integers(0, 1), question=st.binary(min_size=1, max_size=40), room=st.booleans())
    def offer(self, queue: int, question: bytes, room: bool) -> None:
        # In any state of the device: no precondition, since its own thread may change that.
        driver = self.bench.queues[queue]
        if driver.free_descriptors >= 2:
            driver.add([question], [64] if room else [])
            self.driver.notify(queue)

    @rule(queue=st.integers(0, 1), data=st.data())
    def scribble(self, queue: int, data: st.DataObject) -> None:
        """Anything into a part of the rings, and a ring of the doorbell."""
        layout = self.bench.queues[queue].layout
        start, length = data.draw(
            st.sampled_from(
                [
                    (layout.desc, layout.desc_bytes),
                    (layout.avail, layout.avail_bytes),
                    (layout.used, layout.used_bytes),
                ]
            )
        )
        offset = data.draw(st.integers(0, length - 1))
        content = data.draw(st.binary(min_size=1, max_size=32))
        self.bench.memory.write(start + offset, content[: length - offset])
        self.driver.notify(queue)

    @rule(
        queue=st.integers(0, 1),
        address=st.one_of(st.integers(0x1000, 0x9000), st.integers(0, (1 << 64) - 1)),
        length=st.one_of(st.integers(0, 64), st.integers(0, (1 << 32) - 1)),
        flags=st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)),
        following=st.integers(0, 17),
        head=st.integers(0, 16),
    )
    def offer_anything(
        self, queue: int, address: int, length: int, flags: int, following: int, head: int
    ) -> None:
        driver = self.bench.queues[queue]
        driver.write_descriptor(min(head, 15), address, length, flags, following)
        driver.offer(head)
        self.driver.notify(queue)

    @rule(features=st.sampled_from([RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX]))
    def a_driver_that_behaves_is_served(self, features: int) -> None:
        self.initialize(features, 2)
        for number, queue in enumerate(self.bench.queues):
            queue.add([b"question"], [64])
            self.driver.notify(number)
            assert self._within_bound(queue.used)[0].data == b"QUESTION"
        assert self.driver.status == 15

    def _within_bound(self, look: Callable[[], list]) -> list:
        end = time.monotonic() + ANSWER_WITHIN_S
        while not (found := look()):
            assert self.loop.ended_by is None
            assert time.monotonic() < end, "No answer: the device does not recover."
            time.sleep(0.0002)
        return found


TestAnyGuest = AnyGuest.TestCase
TestAnyGuest.settings = settings(
    max_examples=200,
    stateful_step_count=25,
    deadline=None,
    # Not `shrink`: what hangs does so for `ANSWER_WITHIN_S` in each attempt.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
