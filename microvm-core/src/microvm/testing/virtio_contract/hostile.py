"""What a driver can do to any queue, by the rows of the hazard catalogue.

Where the standard forbids something, the device's run ends in a `GuestError` if it looks at that
queue; it does look at the one that its `request` is for. `VirtQueue` finds most of it: what a
device can do wrong is to swallow the error, to act before it is found, or to follow what the
driver has written a second time.
"""

from __future__ import annotations

import random
import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.errors import GuestError
from microvm.testing.flipping import flipping
from microvm.testing.virtio_contract.rig import MEMORY_BYTES, Request, Rig, Segment, play
from microvm.virtio.chain import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR
from microvm.virtio.features import RING_FEATURES, RING_INDIRECT_DESC

if TYPE_CHECKING:
    from microvm.abc import Activation, VirtioDevice
    from microvm.testing.queue_driver import QueueDriver

READ: Final = 0
WRITE: Final = DESC_F_WRITE
MAX_GROWTH_BYTES: Final = 8 << 20
"""What a device may hold of its guest's data, at most, while it serves one request."""
OUTSIDE: Final = (MEMORY_BYTES, 0xFEE0_0000, (1 << 64) - 4096, (1 << 64) - 1)
"""Addresses that are no RAM: its end, a device's registers, the end of everything."""
UNKNOWN_FLAGS: Final = 0xFFF8
SUBCLASSED: Final = (HealthCheck.differing_executors,)
"""One test function serves several classes: a device each, which is what it is for."""


class HostileDriver(ABC):
    """The rows. See `VirtioDeviceContract`, which authors subclass."""

    @abstractmethod
    def device(self) -> VirtioDevice:
        """A new device, without a limit on its rate."""

    @abstractmethod
    def request(self) -> Request:
        """A request that the device answers by itself, in order, every time that it is put."""

    def features(self) -> int:
        """What the driver accepts of the device's own features."""
        return self.device().features

    async def prepare(self, rig: Rig) -> None:  # noqa: B027 - most drivers do nothing here
        """Whatever a driver does before its first request; the device runs. Nothing by default."""

    # --- helpers ---------------------------------------------------------------------------------

    def rig(self, features: int | None = None, *, without: int = 0) -> Rig:
        """A new device with its drivers; by default they accept everything."""
        accepted = self.features() if features is None else features
        return Rig(self.device(), (accepted | RING_FEATURES) & ~without)

    async def prepared(self, rig: Rig) -> None:
        """Run the device for as long as `prepare` takes; then it is as after a pause."""
        async with rig.running():
            await self.settle(rig)

    async def settle(self, rig: Rig) -> None:
        """`prepare`, while the device runs, and take back what that has used."""
        await self.prepare(rig)
        await rig.rest()
        for driver in rig.queues:
            driver.used_elements()

    @asynccontextmanager
    async def served(self, rig: Rig) -> AsyncIterator[None]:
        """While the block lasts, the device serves a driver that has prepared itself."""
        async with rig.device.lifespan():
            rig.device.reset()
            async with rig.running():
                await self.settle(rig)
                yield

    async def ask(self, rig: Rig, times: int = 1) -> None:
        """Put the request so many times, each when the one before was answered."""
        request = self.request()
        rig.device.reset()
        segments = rig.segments(request)
        async with rig.running():
            await self.settle(rig)
            for _ in range(times):
                rig.offer(request.queue, segments)
                assert await rig.answered(request.queue), "A request was not answered."

    def suffer(
        self,
        act: Callable[[Rig, QueueDriver, int], None],
        *,
        must_fail: bool,
        without: int = 0,
    ) -> None:
        """Have a driver do something to each queue in turn, on a new device each time.

        Args:
            act: What it does; gets the rig, the driver and the queue's index.
            must_fail: Whether the standard forbids it.
            without: Features that the driver does not accept.
        """
        wanted = self.request().queue

        async def main() -> None:
            for queue in range(len(self.device().queue_max_sizes)):
                rig = self.rig(without=without)
                async with rig.device.lifespan():
                    rig.device.reset()
                    await self.prepared(rig)
                    act(rig, rig.queues[queue], queue)
                    rig.queues[queue].doorbell.ring()
                    error = await rig.outcome()
                    assert all(
                        count <= driver.size
                        for count, driver in zip(rig.in_flight, rig.queues, strict=True)
                    )
                    if must_fail and queue == wanted:
                        assert error is not None, "The driver broke a rule, and nobody said so."

        play(main)

    def forbidden(self, *descriptors: tuple[int, int, int, int], without: int = 0) -> None:
        """Offer a chain of these raw descriptors (addr, len, flags, next), which must not be."""

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            for index, descriptor in enumerate(descriptors):
                driver.write_descriptor(index, *descriptor)
            driver.offer(0)

        self.suffer(act, must_fail=True, without=without)

    def forbidden_table(
        self, make: Callable[[int], tuple[bytes, tuple[int, int, int, int]]], *, without: int = 0
    ) -> None:
        """Offer an indirect descriptor that must not be.

        Args:
            make: From the address of a free block, what to write there and the descriptor.
            without: Features that the driver does not accept.
        """

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            address, _ = rig.heap.take(65536)
            data, descriptor = make(address)
            rig.memory.write(address, data)
            driver.write_descriptor(0, *descriptor)
            driver.offer(0)

        self.suffer(act, must_fail=True, without=without)

    # --- row 17 to 23: indexes and chains --------------------------------------------------------

    @pytest.mark.parametrize("step", ["one too many", "half way round", "backwards"])
    def test_row_17_an_index_that_runs_ahead_or_back_is_a_fault(self, step: str) -> None:
        """Row 17."""

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            moves = {"one too many": driver.size + 1, "half way round": 0x8000, "backwards": -1}
            driver.avail_idx = driver.avail_idx + moves[step]

        self.suffer(act, must_fail=True)

    def test_row_18_indexes_wrap_and_nothing_is_lost(self) -> None:
        """Row 18: over 65535 and back to 0."""

        async def main() -> None:
            rig = self.rig()
            request = self.request()
            async with rig.device.lifespan():
                rig.device.reset()
                await self.prepared(rig)
                rig.move_indexes(request.queue, 0xFFF0)
                segments = rig.segments(request)
                async with rig.running():
                    for _ in range(64):
                        rig.offer(request.queue, segments)
                        ((head, _),) = await rig.answered(request.queue)
                        assert head == 0
                assert rig.queues[request.queue].avail_idx == 0xFFF0 + 64 - 0x1_0000

        play(main)

    def test_row_19_a_head_that_there_is_not_is_a_fault(self) -> None:
        """Row 19."""
        for head in (0, 1, 0x7FFF):
            self.suffer(
                lambda rig, driver, queue, head=head: driver.offer(  # type: ignore[misc]
                    max(driver.size, head) if head != 1 else 0xFFFF
                ),
                must_fail=True,
            )

    def test_row_19_a_chain_that_goes_on_where_nothing_is_is_a_fault(self) -> None:
        """Row 19."""
        self.forbidden((0x8000, 16, READ | DESC_F_NEXT, 0xFFFF))

    @pytest.mark.parametrize("length", [1, 2, 7])
    def test_row_20_a_chain_that_loops_is_a_fault(self, length: int) -> None:
        """Row 20."""
        self.forbidden(
            *((0x8000, 16, WRITE | DESC_F_NEXT, (index + 1) % length) for index in range(length))
        )

    def test_row_20_a_loop_through_the_whole_table_is_a_fault(self) -> None:
        """Row 20."""

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            for index in range(driver.size):
                following = (index + 1) % driver.size
                driver.write_descriptor(index, 0x8000, 16, READ | DESC_F_NEXT, following)
            driver.offer(0)

        self.suffer(act, must_fail=True)

    @pytest.mark.parametrize("flags", [READ, WRITE])
    def test_row_21_a_chain_of_4_gib_costs_no_memory(self, flags: int) -> None:
        """Row 21: the same megabytes again and again, and lengths that no memory has."""

        def same_again(rig: Rig, driver: QueueDriver, queue: int) -> None:
            count = driver.size
            for index in range(count):
                more = DESC_F_NEXT if index + 1 < count else 0
                driver.write_descriptor(index, 0, MEMORY_BYTES, flags | more, index + 1)
            driver.offer(0)

        tracemalloc.start()
        try:
            self.suffer(same_again, must_fail=False)
            self.forbidden((0, 0xFFFF_FFFF, flags | DESC_F_NEXT, 1), (0, 0xFFFF_FFFF, flags, 0))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < MAX_GROWTH_BYTES, f"The device's memory grew by {peak} bytes."

    @pytest.mark.parametrize("flags", [READ, WRITE])
    @pytest.mark.parametrize("address", OUTSIDE)
    def test_row_22_a_buffer_that_is_not_ram_is_a_fault(self, address: int, flags: int) -> None:
        """Row 22, and row 24: the registers of devices are not RAM."""
        self.forbidden((address, 4096, flags, 0))

    @pytest.mark.parametrize("flags", [READ, WRITE])
    def test_row_22_a_buffer_that_leaves_ram_is_a_fault(self, flags: int) -> None:
        """Row 22."""
        self.forbidden((MEMORY_BYTES - 8, 16, flags, 0))

    @pytest.mark.parametrize("place", ["first", "middle", "last"])
    def test_row_23_an_empty_descriptor_is_skipped_or_is_a_fault(self, place: str) -> None:
        """Row 23."""
        request = self.request()

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            segments = rig.segments(request)
            flags = segments[0 if place == "first" else -1].flags
            at = {"first": 0, "middle": len(segments) // 2, "last": len(segments)}[place]
            if place == "middle":
                flags = segments[at].flags if segments[at - 1].flags == READ else WRITE
            rig.offer(
                queue, (*segments[:at], Segment(address=0, length=0, flags=flags), *segments[at:])
            )

        self.suffer(act, must_fail=False)

    @pytest.mark.parametrize("flags", [READ, WRITE])
    def test_row_23_a_chain_that_holds_nothing_hangs_nobody(self, flags: int) -> None:
        """Row 23."""
        self.suffer(
            lambda rig, driver, queue: void(
                rig.offer(queue, [Segment(address=0, length=0, flags=flags)] * 3)
            ),
            must_fail=False,
        )

    # --- row 24: where buffers may lie -----------------------------------------------------------

    @pytest.mark.parametrize("flags", [READ, WRITE])
    def test_row_24_buffers_in_the_rings_and_on_each_other_hurt_nobody_else(
        self, flags: int
    ) -> None:
        """Row 24: what the device reads is then garbage, and what it writes makes some."""
        request = self.request()

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            layout = driver.layout
            segments = rig.segments(request)
            for address in (layout.desc, layout.avail, layout.used, 0):
                rig.offer(queue, [Segment(address=address, length=4096, flags=flags)])
            block = segments[0].address
            rig.offer(
                queue,
                [Segment(address=block, length=64, flags=READ)]
                + [Segment(address=block + step, length=64, flags=WRITE) for step in range(3)],
                first=8 % driver.size,
            )

        self.suffer(act, must_fail=False)

    # --- rows 25 and 26: indirect tables ---------------------------------------------------------

    def test_row_25_an_indirect_table_that_was_not_negotiated_is_a_fault(self) -> None:
        """Row 25."""
        self.forbidden_table(
            lambda at: (DESCRIPTOR.pack(at + 64, 16, WRITE, 0), (at, 16, DESC_F_INDIRECT, 0)),
            without=RING_INDIRECT_DESC,
        )

    def test_row_25_an_indirect_descriptor_ends_its_chain(self) -> None:
        """Row 25."""
        self.forbidden_table(
            lambda at: (
                DESCRIPTOR.pack(at + 64, 16, WRITE, 0),
                (at, 16, DESC_F_INDIRECT | DESC_F_NEXT, 0),
            )
        )

    def test_row_25_an_indirect_table_refers_to_no_other(self) -> None:
        """Row 25."""
        self.forbidden_table(
            lambda at: (DESCRIPTOR.pack(at, 16, DESC_F_INDIRECT, 0), (at, 16, DESC_F_INDIRECT, 0))
        )

    @pytest.mark.parametrize("length", [0, 1, 15, 17, 16 * 4096])
    def test_row_25_an_indirect_table_has_a_length_that_can_be(self, length: int) -> None:
        """Row 25: not 0, whole descriptors, no more than the queue has."""
        self.forbidden_table(
            lambda at: (DESCRIPTOR.pack(at, 16, WRITE, 0), (at, length, DESC_F_INDIRECT, 0))
        )

    @pytest.mark.parametrize("address", OUTSIDE)
    def test_row_25_an_indirect_table_is_in_ram(self, address: int) -> None:
        """Row 25."""
        self.forbidden((address, 16, DESC_F_INDIRECT, 0))

    @pytest.mark.parametrize(
        "oddity", ["an unaligned table", "a table's descriptor is writable", "a table after others"]
    )
    def test_row_26_what_is_odd_and_legal_is_answered(self, oddity: str) -> None:
        """Row 26."""
        request = self.request()

        async def main() -> None:
            rig = self.rig()
            driver = rig.queues[request.queue]
            async with self.served(rig):
                segments = rig.segments(request)
                split = len(segments) - 1 if oddity == "a table after others" else 0
                table, _ = rig.heap.take(16 * len(segments) + 16)
                table += 3 if oddity == "an unaligned table" else 0
                rig.memory.write(table, packed(segments[split:]))
                for index, segment in enumerate(segments[:split]):
                    flags = segment.flags | DESC_F_NEXT
                    driver.write_descriptor(
                        index, segment.address, segment.length, flags, index + 1
                    )
                writable = DESC_F_WRITE if oddity == "a table's descriptor is writable" else 0
                length = 16 * (len(segments) - split)
                driver.write_descriptor(split, table, length, DESC_F_INDIRECT | writable)
                driver.offer(0)
                driver.doorbell.ring()
                assert [head for head, _ in await rig.answered(request.queue)] == [0]

        play(main)

    # --- rows 27 to 29 ---------------------------------------------------------------------------

    def test_row_27_a_readable_buffer_behind_a_writable_one_is_a_fault(self) -> None:
        """Row 27."""
        self.forbidden((0x8000, 16, WRITE | DESC_F_NEXT, 1), (0x9000, 16, READ, 0))

    def test_row_27_flags_that_nobody_knows_mean_nothing(self) -> None:
        """Row 27."""
        request = self.request()

        async def main() -> None:
            rig = self.rig()
            async with self.served(rig):
                segments = [
                    Segment(
                        address=segment.address,
                        length=segment.length,
                        flags=segment.flags | UNKNOWN_FLAGS,
                    )
                    for segment in rig.segments(request)
                ]
                rig.offer(request.queue, segments)
                assert [head for head, _ in await rig.answered(request.queue)] == [0]

        play(main)

    def test_row_28_a_chain_that_is_offered_again_and_again_is_held_once(self) -> None:
        """Row 28."""
        request = self.request()

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            rig.offer(queue, rig.segments(request))
            for _ in range(driver.size - 1):
                driver.offer(0)

        self.suffer(act, must_fail=False)

    @pytest.mark.parametrize("what", ["descriptor", "content"])
    def test_row_29_what_changes_while_it_is_read_is_read_once(self, what: str) -> None:
        """Row 29: the driver acts between any two steps of the device."""
        request = self.request()

        async def attack(seed: int) -> None:
            rig = self.rig()
            driver = rig.queues[request.queue]
            async with rig.device.lifespan():
                rig.device.reset()
                await self.prepared(rig)
                segments = rig.segments(request)
                rig.offer(request.queue, segments)
                if what == "descriptor":
                    where, length = driver.layout.desc, DESCRIPTOR.size
                    other = DESCRIPTOR.pack(1 << 63, 0xFFFF_FFFF, 0xFFFF, 0xFFFF)
                else:
                    where, length = segments[0].address, min(segments[0].length, 64)
                    other = b"\xff" * length
                variants = (rig.memory.read(where, length), other, bytes(length))
                # In any order: a device's steps fall into no rhythm.
                order = random.Random(seed).choices(variants, k=101)  # noqa: S311
                active = rig.activation()
                with flipping(rig.memory, where, order):
                    await _steps(rig, active)
                rig.take_back()

        for seed in range(12):
            play(partial(attack, seed))

    # --- anything in the rings -------------------------------------------------------------------

    @given(
        table=st.lists(
            st.tuples(
                st.sampled_from((0, 0x8000, 0x9001, MEMORY_BYTES - 8, *OUTSIDE)),
                st.sampled_from((0, 1, 15, 16, 44, 4096, 0xFFFF_FFFF)),
                st.integers(0, 7),
                st.integers(0, 9),
            ),
            min_size=8,
            max_size=8,
        ),
        heads=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)), max_size=8),
        step=st.one_of(st.just(0), st.integers(0, 0xFFFF)),
    )
    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, *SUBCLASSED]
    )
    def test_whatever_is_in_the_rings_is_served_or_is_the_drivers_fault(
        self, table: list[tuple[int, int, int, int]], heads: list[int], step: int
    ) -> None:
        """Rows 17 to 28, in any mixture."""

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            for index, descriptor in enumerate(table[: driver.size]):
                driver.write_descriptor(index, *descriptor)
            for head in heads:
                driver.offer(head)
            driver.avail_idx = driver.avail_idx + step

        self.suffer(act, must_fail=False)


def packed(segments: Sequence[Segment]) -> bytes:
    """An indirect table of these buffers."""
    last = len(segments) - 1
    return b"".join(
        DESCRIPTOR.pack(
            segment.address,
            segment.length,
            segment.flags | (DESC_F_NEXT if index < last else 0),
            index + 1 if index < last else 0,
        )
        for index, segment in enumerate(segments)
    )


def void(result: object) -> None:
    """For lambdas whose result is nobody's concern."""


async def _steps(rig: Rig, active: Activation) -> None:
    """Run the device for some steps, as `Rig.outcome` does but without waiting for it to rest."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.device.run, active)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    except* GuestError:
        pass
