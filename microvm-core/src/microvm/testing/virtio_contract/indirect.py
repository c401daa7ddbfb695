"""Rows 25 and 26: indirect tables (virtio 1.2, 2.7.5.3), those that must not be and odd ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from microvm.testing.virtio_contract.attack import DeviceUnderTest
from microvm.testing.virtio_contract.rig import MEMORY_BYTES, Segment, play
from microvm.virtio.chain import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR
from microvm.virtio.features import RING_INDIRECT_DESC

WRITE: Final = DESC_F_WRITE
OUTSIDE: Final = (MEMORY_BYTES, 0xFEE0_0000, (1 << 64) - 4096, (1 << 64) - 1)
"""Addresses that are no RAM: its end, a device's registers, the end of everything."""


class IndirectTables(DeviceUnderTest):
    """See `VirtioDeviceContract`, which authors subclass."""

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
