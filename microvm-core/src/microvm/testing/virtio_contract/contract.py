"""The contract, one test a behaviour.

What a driver can do to any queue is in `.hostile`, what both transports do in `.transports`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.lowlevel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.testing.census import Census
from microvm.testing.queue_driver import FakeIrqLine
from microvm.testing.virtio_contract.bounds import MAX_GROWTH_BYTES, bounded_growth
from microvm.testing.virtio_contract.hostile import SUBCLASSED
from microvm.testing.virtio_contract.rig import Rig, play
from microvm.testing.virtio_contract.transports import BothTransports
from microvm.virtio.features import DEVICE_TYPE_MASK, RING_EVENT_IDX, RING_FEATURES, VERSION_1
from microvm.virtio.queue import MAX_QUEUE_SIZE

if TYPE_CHECKING:
    from microvm.abc import ActiveQueue

MAX_CUTS = 100
CONFIG_BYTES = 0xF00
"""What virtio-mmio leaves for a configuration space."""


class VirtioDeviceContract(BothTransports):
    """Subclass it in a test module, by a name that pytest collects; say `device` and `request`."""

    # --- what it says of itself ------------------------------------------------------------------

    def test_it_names_its_type_its_features_and_its_queues(self) -> None:
        device = self.device()
        assert 0 < device.device_id < 0x1_0000
        assert not device.features & ~DEVICE_TYPE_MASK, "Those bits are the transport's."
        sizes = list(device.queue_max_sizes)
        assert sizes, "A device without queues has nobody to talk to."
        assert all(0 < size <= MAX_QUEUE_SIZE and not size & (size - 1) for size in sizes)
        assert list(device.queue_max_sizes) == sizes
        assert device.always_writable.step == 1

    @given(offset=st.integers(0, CONFIG_BYTES), length=st.integers(0, 256))
    @settings(max_examples=200, deadline=None, suppress_health_check=SUBCLASSED)
    def test_its_configuration_space_reads_as_long_as_was_asked_for(
        self, offset: int, length: int
    ) -> None:
        device = self.device()
        whole = device.read_config(offset, length)
        assert isinstance(whole, bytes)
        assert len(whole) == length
        singly = b"".join(device.read_config(offset + at, 1) for at in range(length))
        assert whole == singly

    @given(offset=st.integers(0, CONFIG_BYTES), data=st.binary(min_size=1, max_size=8))
    @settings(max_examples=100, deadline=None, suppress_health_check=SUBCLASSED)
    def test_its_configuration_space_takes_any_write(self, offset: int, data: bytes) -> None:
        device = self.device()
        device.write_config(offset, data)
        assert len(device.read_config(0, 64)) == 64

    def test_its_counters_are_whole_numbers_and_never_go_back(self) -> None:
        async def main() -> None:
            rig = self.rig()
            async with rig.device.lifespan():
                await self.ask(rig)
                before = dict(rig.device.counters())
                rig.restart()
                await self.ask(rig)
                rig.restart()
                after = dict(rig.device.counters())
            assert all(type(value) is int and value >= 0 for value in after.values())
            assert all(after[name] >= value for name, value in before.items())

        play(main)

    def test_making_one_takes_nothing_and_leaving_its_lifespan_gives_all_back(self) -> None:
        async def main() -> None:
            rig = self.rig()
            async with rig.device.lifespan():
                await self.ask(rig)

        play(main)  # what is imported is imported now, and trio has its threads
        before = Census.take()
        play(main)
        assert Census.take() == before

    # --- requests --------------------------------------------------------------------------------

    def test_requests_are_answered_however_many_there_are(self) -> None:
        async def main() -> None:
            rig = self.rig()
            async with rig.device.lifespan():
                await self.ask(rig, times=3 * rig.queues[self.request().queue].size)

        play(main)

    def test_a_request_that_was_there_before_the_run_is_answered(self) -> None:
        async def main() -> None:
            rig = self.rig()
            request = self.request()
            async with rig.device.lifespan():
                rig.device.reset()
                rig.offer(request.queue, rig.segments(request))
                async with rig.running():
                    await rig.answered(request.queue)

        play(main)

    @pytest.mark.parametrize("event_idx", [True, False])
    def test_row_32_the_driver_is_interrupted_iff_it_wants_to_be(self, event_idx: bool) -> None:
        """Row 32."""

        async def main() -> None:
            ring = RING_FEATURES if event_idx else RING_FEATURES & ~RING_EVENT_IDX
            rig = self.rig(self.features() | ring, without=RING_FEATURES & ~ring)
            request = self.request()
            driver = rig.queues[request.queue]
            async with self.served(rig):
                if event_idx:
                    driver.used_event = driver.used_event + 0x4000
                else:
                    driver.avail_flags = 1
                before = driver.irq.triggers
                rig.offer(request.queue, rig.segments(request))
                await rig.answered(request.queue)
                await rig.rest()
                assert driver.irq.triggers == before, "It interrupts who wants none."
                driver.avail_flags = 0
                driver.want_interrupt()
                rig.offer(request.queue, rig.segments(request))
                await rig.answered(request.queue)
                await rig.rest()
                assert driver.irq.triggers > before, "It does not interrupt who wants it."

        play(main)

    def test_row_34_the_used_length_is_what_was_written_and_nothing_lies_behind_it(self) -> None:
        """Row 34: 2.7.8.1; buffers are full of one pattern or another before."""

        async def main() -> None:
            rig = self.rig()
            request = self.request()
            last_bytes_kept = []
            async with self.served(rig):
                for pattern in (0xA5, 0x5A) * 4:
                    segments = rig.segments(request, pattern=pattern)
                    rig.offer(request.queue, segments)
                    ((head, written),) = await rig.answered(request.queue)
                    content = rig.content(segments)
                    assert head == 0
                    assert written <= len(content)
                    behind = content[written:]
                    assert behind == bytes([pattern]) * len(behind), "More was written than told."
                    if written:
                        last_bytes_kept.append(content[written - 1] == pattern)
            assert not last_bytes_kept or not all(last_bytes_kept), "More was told than written."

        play(main)

    def test_a_request_may_be_cut_into_buffers_anywhere(self) -> None:
        """2.7.4.1: no device assumes anything of where a message is cut."""

        async def main() -> None:
            rig = self.rig()
            request = self.request()
            async with self.served(rig):
                rig.offer(request.queue, rig.segments(request))
                ((_, expected),) = await rig.answered(request.queue)
                readable, writable = b"".join(request.readable), sum(request.writable)
                for cut in range(max(len(readable), writable, 1) + 1):
                    if cut > MAX_CUTS:
                        break
                    pieces = attrs.evolve(
                        request,
                        readable=tuple(filter(None, (readable[:cut], readable[cut:]))),
                        writable=tuple(
                            filter(None, (min(cut, writable), writable - min(cut, writable)))
                        ),
                    )
                    rig.offer(request.queue, rig.segments(pieces))
                    ((_, written),) = await rig.answered(request.queue)
                    assert written == expected, f"Cut at {cut}, the answer is another."

        play(main)

    def test_an_idle_device_rests(self) -> None:
        async def main() -> None:
            rig = self.rig()
            async with rig.device.lifespan():
                rig.device.reset()
                assert await rig.outcome() is None

        play(main)

    def test_a_driver_that_offers_without_end_leaves_the_others_their_turn(self) -> None:
        async def main() -> None:
            rig = self.rig()
            request = self.request()
            line = _BusyDriver(rig, request.queue, rig.segments(request))
            turns = 0
            rig.device.reset()
            async with rig.device.lifespan(), trio.open_nursery() as nursery:
                await self.prepared(rig)
                active = rig.activation()
                queues: list[ActiveQueue] = list(active.queues)
                queues[request.queue] = attrs.evolve(queues[request.queue], irq=line)
                rig.queues[request.queue].want_interrupt()
                line.trigger()
                nursery.start_soon(rig.device.run, attrs.evolve(active, queues=tuple(queues)))
                while line.left:
                    turns += 1
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert turns > 10

        play(main)

    # --- what a driver may leave out --------------------------------------------------------------

    def test_a_driver_that_accepts_nothing_is_served_or_refused(self) -> None:
        async def main() -> None:
            rig = self.rig(VERSION_1, without=~VERSION_1)
            async with rig.device.lifespan():
                rig.device.reset()
                await rig.outcome()

        play(main)

    def test_queues_that_the_driver_has_not_set_up_are_done_without(self) -> None:
        async def main() -> None:
            for count in range(len(self.device().queue_max_sizes)):
                rig = self.rig()
                async with rig.device.lifespan():
                    rig.device.reset()
                    active = rig.activation()
                    await rig.outcome(attrs.evolve(active, queues=active.queues[:count]))

        play(main)

    # --- pauses, resets and cancellation ----------------------------------------------------------

    def test_a_pause_at_any_moment_loses_and_repeats_no_request(self) -> None:
        """Cancelled after each of its first steps, and then run again, as after a pause."""

        async def main() -> None:
            for steps in range(25):
                rig = self.rig()
                request = self.request()
                async with rig.device.lifespan():
                    rig.device.reset()
                    await self.prepared(rig)
                    for index in range(3):
                        at = index * (len(request.readable) + len(request.writable))
                        rig.offer(request.queue, rig.segments(request), at)
                    async with rig.running():
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                    async with rig.running():
                        elements = await rig.answered(request.queue, 3)
                        await rig.rest()
                    elements += rig.queues[request.queue].used_elements()
                    assert len(elements) == 3, (
                        f"Paused after {steps} steps, it answered 3 requests {len(elements)} times."
                    )
                    assert len({head for head, _ in elements}) == 3

        play(main)

    def test_a_reset_forgets_and_the_next_driver_is_served(self) -> None:
        async def main() -> None:
            rig = self.rig()
            async with rig.device.lifespan():
                for _ in range(3):
                    await self.ask(rig)
                    rig.restart()
                    rig.device.reset()
                    rig.device.reset()

        play(main)

    def test_after_a_drivers_fault_and_a_reset_it_serves_again(self) -> None:
        async def main() -> None:
            rig = self.rig()
            queue = self.request().queue
            async with rig.device.lifespan():
                rig.device.reset()
                rig.queues[queue].offer(rig.queues[queue].size)
                assert await rig.outcome() is not None
                rig.restart()
                await self.ask(rig)

        play(main)

    def test_row_33_after_a_reset_it_does_not_touch_the_guests_memory(self) -> None:
        """Row 33: whatever it was about."""

        async def main() -> None:
            for steps in (0, 1, 2, 3, 5, 8, 13):
                rig = self.rig()
                request = self.request()
                async with rig.device.lifespan():
                    rig.device.reset()
                    rig.offer(request.queue, rig.segments(request))
                    async with rig.running():
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                    rig.release()
                    before = rig.memory.read(0, rig.memory.regions[0].end)
                    rig.device.reset()
                    for driver in rig.queues:
                        driver.doorbell.ring()
                    for _ in range(5):
                        await trio.sleep(0.001)
                        await rig.rest()
                    assert rig.memory.read(0, rig.memory.regions[0].end) == before

        play(main)

    # --- anything at all -------------------------------------------------------------------------

    @given(data=st.data())
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            *SUBCLASSED,
        ],
    )
    def test_whatever_a_driver_sends_is_served_or_is_its_fault(self, data: Any) -> None:
        """Any bytes in any buffers on any queue, with the request's own mixed in."""
        request = self.request()
        samples = st.sampled_from(request.readable) if request.readable else st.nothing()
        mutated = samples.flatmap(
            lambda whole: st.tuples(st.integers(0, len(whole)), st.binary(max_size=4)).map(
                lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + len(cut[1]) :]
            )
        )
        contents = st.one_of(samples, mutated, st.binary(max_size=80))
        lengths = st.sampled_from((0, 1, 2, 7, 16, 44, 64, 512, 4096, *request.writable))
        chains = data.draw(
            st.lists(
                st.tuples(
                    st.one_of(
                        st.just(request.queue),
                        st.integers(0, len(self.device().queue_max_sizes) - 1),
                    ),
                    st.lists(contents, max_size=3),
                    st.lists(lengths, max_size=3),
                    st.booleans(),
                ),
                min_size=1,
                max_size=8,
            )
        )

        async def main() -> None:
            rig = self.rig()
            async with rig.device.lifespan():
                rig.device.reset()
                async with rig.running():
                    await self.prepare(rig)
                for queue, readable, writable, indirect in chains:
                    driver = rig.queues[queue]
                    if readable or writable:
                        with contextlib.suppress(ValueError):  # there is no descriptor left
                            driver.add(readable, writable, indirect=indirect)
                with bounded_growth(MAX_GROWTH_BYTES):
                    await rig.outcome()

        play(main)


class _BusyDriver(FakeIrqLine):
    """Offers the same chain again at each interrupt, from within it."""

    def __init__(self, rig: Rig, queue: int, segments: Any) -> None:
        super().__init__()
        self._rig = rig
        self._queue = queue
        self._segments = segments
        self.left = 3000

    def trigger(self) -> None:
        """As `IrqLine.trigger`."""
        super().trigger()
        if self.left:
            self.left -= 1
            driver = self._rig.queues[self._queue]
            driver.used_elements()
            self._rig.offer(self._queue, self._segments)
            driver.want_interrupt()
