"""What a driver can do to any queue, by the rows of the hazard catalogue.

Where the standard forbids something, the device's run ends in a `GuestError` if it looks at that
queue; it does look at the one that its `request` is for. `VirtQueue` finds most of it: what a
device can do wrong is to swallow the error, to act before it is found, or to follow what the
driver has written a second time.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.errors import GuestError
from microvm.testing.flipping import flipping
from microvm.testing.virtio_contract.bounds import MAX_GROWTH_BYTES
from microvm.testing.virtio_contract.indirect import OUTSIDE, IndirectTables
from microvm.testing.virtio_contract.rig import MEMORY_BYTES, Rig, Segment, play
from microvm.virtio.chain import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR

if TYPE_CHECKING:
    from microvm.abc import Activation
    from microvm.testing.queue_driver import QueueDriver

READ: Final = 0
WRITE: Final = DESC_F_WRITE
MAX_REQUEST_GROWTH_BYTES: Final = 8 << 20
"""What a device may hold of its guest's data, at most, while it serves one request."""
UNKNOWN_FLAGS: Final = 0xFFF8
INDIRECT: Final = tuple(DESC_F_INDIRECT | flags for flags in range(4))
SUBCLASSED: Final = (HealthCheck.differing_executors,)
"""One test function serves several classes: a device each, which is what it is for."""


class HostileDriver(IndirectTables):
    """The rows. See `VirtioDeviceContract`, which authors subclass."""

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

        most = MAX_REQUEST_GROWTH_BYTES
        self.suffer(same_again, must_fail=False, max_growth_bytes=most)
        self.forbidden(
            (0, 0xFFFF_FFFF, flags | DESC_F_NEXT, 1),
            (0, 0xFFFF_FFFF, flags, 0),
            max_growth_bytes=most,
        )

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

        self.suffer(act, must_fail=False, max_growth_bytes=MAX_GROWTH_BYTES)

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

        self.suffer(act, must_fail=False, max_growth_bytes=MAX_GROWTH_BYTES)

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

        # A device that checks one read and goes by the next is caught by two orders of nine; the
        # steps in between are trio's too, and never quite the same.
        for seed in range(48):
            play(partial(attack, seed))

    # --- anything in the rings -------------------------------------------------------------------

    @given(
        table=st.lists(
            st.tuples(
                st.sampled_from((*(0, 0x8000, 0x9001) * 8, MEMORY_BYTES - 8, *OUTSIDE)),
                st.sampled_from((*(1, 15, 16, 44, 4096) * 4, 0, 0xFFFF_FFFF)),
                st.sampled_from(
                    (*(READ, WRITE) * 6, *(DESC_F_NEXT, WRITE | DESC_F_NEXT) * 3, *INDIRECT)
                ),
                st.integers(0, 9),
            ),
            min_size=8,
            max_size=8,
        ),
        heads=st.lists(
            st.sampled_from((*range(8), *range(8), 8, 9, 0xFFFF)), min_size=1, max_size=8
        ),
        step=st.sampled_from((*(0,) * 12, 1, 8, 0x7FFF, 0x8000, 0xFFFF)),
    )
    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, *SUBCLASSED]
    )
    def test_whatever_is_in_the_rings_is_served_or_is_the_drivers_fault(
        self, table: list[tuple[int, int, int, int]], heads: list[int], step: int
    ) -> None:
        """Rows 17 to 28, in any mixture; most of it legal, or nothing would reach the device."""

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            for index, descriptor in enumerate(table[: driver.size]):
                driver.write_descriptor(index, *descriptor)
            for head in heads:
                driver.offer(head)
            driver.avail_idx = driver.avail_idx + step

        self.suffer(act, must_fail=False, max_growth_bytes=MAX_GROWTH_BYTES)


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
