"""The device as a guest's driver sees it, over real guest memory: data, features, configuration."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from microvm.config import DriveConfig
from microvm.virtio.features import RING_FEATURES
from microvm_devices.blk import layout, limits
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import S_IOERR, S_OK, S_UNSUPP, T_IN, T_OUT
from microvm_devices.blk.raw_disk import open_raw_disk
from microvm_devices.blk.testing import ALL_FEATURES, GuestBlk, MemoryDisk

from .drives import contents, device_on

# --- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("buffers", [1, 7])
async def test_what_is_written_is_in_the_file_and_what_is_in_the_file_is_read(
    image: Path, buffers: int, indirect: bool
) -> None:
    device = BlkDevice(DriveConfig(path=image), open_raw_disk)
    guest = GuestBlk(indirect=indirect)
    before = contents(image)
    data = os.urandom(20 * 512)
    async with guest.attached(device):
        read = await guest.read(100, 8, buffers=buffers)
        assert (read.status, read.data, read.written) == (
            S_OK,
            before[100 * 512 : 108 * 512],
            8 * 512 + 1,
        )
        assert await guest.write(2000, data, buffers=buffers) == S_OK
        assert (await guest.read(2000, 20, buffers=buffers)).data == data
        assert await guest.flush() == S_OK
    after = before[: 2000 * 512] + data + before[2020 * 512 :]
    assert contents(image) == after


@pytest.mark.parametrize("cached", [False, True])
async def test_zeroed_and_discarded_sectors(cached: bool) -> None:
    """Row 39: after WRITE_ZEROES reads give zeros."""
    disk, guest = MemoryDisk(cached=cached), GuestBlk()
    disk.data[:] = b"\x11" * disk.size
    async with guest.attached(device_on(disk)):
        assert await guest.write_zeroes((1, 2, 0), (5, 1, 1)) == S_OK
        assert await guest.discard((7, 1, 0)) == S_OK
        data = (await guest.read(0, 9)).data
    sectors = [data[at : at + 512] for at in range(0, len(data), 512)]
    assert [index for index, sector in enumerate(sectors) if sector == bytes(512)] == [1, 2, 5]
    assert sectors[0] == sectors[3] == b"\x11" * 512


async def test_a_segment_that_can_not_be_served_spoils_the_whole_request_and_nothing_else() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    disk.data[:] = b"\x11" * disk.size
    async with guest.attached(device_on(disk)):
        assert await guest.write_zeroes((0, 1, 0), (2047, 2, 0)) == S_IOERR
        assert await guest.write_zeroes((0, 1, 0), (1, 1, 2)) == S_UNSUPP
        assert await guest.discard((0, 1, 1)) == S_UNSUPP
        assert await guest.write_zeroes((0, 1, 0)) == S_OK
    assert disk.data == bytes(512) + b"\x11" * (disk.size - 512)


async def test_large_zeroed_ranges_come_to_the_disk_in_pieces() -> None:
    """A run can be ended between two of them."""
    calls: list[tuple[int, int]] = []

    class Huge(MemoryDisk):
        def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
            calls.append((offset, length))

    disk, guest = Huge(), GuestBlk()
    disk.size = 1 << 31
    async with guest.attached(device_on(disk)):
        assert await guest.write_zeroes((8, limits.MAX_SEGMENT_SECTORS, 0)) == S_OK
    assert max(length for _, length in calls) <= limits.ZEROES_PIECE_BYTES
    assert sum(length for _, length in calls) == limits.MAX_SEGMENT_SECTORS * 512
    assert [offset for offset, _ in calls] == list(
        range(8 * 512, 8 * 512 + (1 << 30), limits.ZEROES_PIECE_BYTES)
    )


@pytest.mark.parametrize("type_", [T_IN, T_OUT])
async def test_large_transfers_come_to_the_disk_in_pieces(
    type_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PIECE_BYTES", 5000)
    disk, guest = MemoryDisk(), GuestBlk()
    disk.data[:] = os.urandom(disk.size)
    lengths: list[int] = []

    class Watched(MemoryDisk):
        def read(self, views, offset, length):  # type: ignore[no-untyped-def]
            lengths.append(length)
            return disk.read(views, offset, length)

        def write(self, views, offset, length):  # type: ignore[no-untyped-def]
            lengths.append(length)
            disk.write(views, offset, length)

    data = os.urandom(100 * 512)
    async with guest.attached(device_on(Watched())):
        if type_ == T_IN:
            answer = await guest.read(3, 100, buffers=9)
            assert answer.data == disk.data[3 * 512 : 103 * 512]
            assert answer.written == 100 * 512 + 1
        else:
            assert await guest.write(3, data, buffers=9) == S_OK
            assert disk.data[3 * 512 : 103 * 512] == data
    assert lengths == [5000] * 10 + [1200]


# --- 40 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 19, 20, 21, 4096])
@pytest.mark.parametrize("serial", [None, "s", "exactly-20-bytes-lng"])
async def test_the_serial_number_fills_twenty_bytes_or_as_many_as_there_are(
    room: int, serial: str | None
) -> None:
    """Row 40."""
    guest = GuestBlk()
    config = DriveConfig(path="/a/disk", serial=serial)
    async with guest.attached(device_on(MemoryDisk(), config)):
        answer = await guest.get_id(room)
    expected = (serial or "").encode().ljust(20, b"\0")[:room]
    assert answer.status == S_OK
    assert answer.data[:20] == expected[:room]
    assert set(answer.data[20:]) <= {0xA5}  # as it was
    assert answer.written == (room + 1 if room <= 20 else 20)


async def test_a_flush_flushes_whatever_else_it_says() -> None:
    """Row 40: with a sector, with data, with room for data; also where it was not negotiated."""
    disk = MemoryDisk()
    for features in (ALL_FEATURES, RING_FEATURES):
        guest = GuestBlk(features=features)
        async with guest.attached(device_on(disk)):
            assert (await guest.ask(layout.T_FLUSH, 7)).status == S_OK
            assert (await guest.ask(layout.T_FLUSH, 1 << 60, b"data" * 999)).status == S_OK
            assert (await guest.ask(layout.T_FLUSH, 0, room=512)).status == S_OK
    assert disk.flushes == 6


# --- 38: read-only -------------------------------------------------------------------------------


async def test_a_read_only_disk_is_not_written(image: Path) -> None:
    """Row 38, for a driver that has accepted what was never offered."""
    before = contents(image)
    config = DriveConfig(path=image, read_only=True)
    device, guest = BlkDevice(config, open_raw_disk), GuestBlk()
    async with guest.attached(device):
        assert await guest.write(0, bytes(512)) == S_IOERR
        assert await guest.write_zeroes((0, 1, 0)) == S_IOERR
        assert await guest.discard((0, 1, 0)) == S_IOERR
        assert await guest.flush() == S_OK
        assert (await guest.read(0, 1)).data == before[:512]
    assert device.counters()["flushes"] == 1
    assert contents(image) == before


# --- features and configuration ------------------------------------------------------------------


def offered(**drive: object) -> int:
    return BlkDevice(DriveConfig(path="/a/disk", **drive), MemoryDisk().opener()).features  # type: ignore[arg-type]


def test_a_flush_is_offered_wherever_there_is_something_to_flush() -> None:
    """5.2.5.2: and always beside CONFIG_WCE."""
    assert offered() & layout.F_FLUSH
    assert offered() & layout.F_CONFIG_WCE
    assert offered(writeback=False) & layout.F_FLUSH
    assert not offered(writeback=False) & layout.F_CONFIG_WCE
    read_only = offered(read_only=True)
    assert read_only & layout.F_RO
    assert not read_only & (layout.F_FLUSH | layout.F_CONFIG_WCE | layout.F_DISCARD)
    assert not read_only & layout.F_WRITE_ZEROES
    assert not offered() & (layout.F_MQ | layout.F_RO)
    assert offered(queues=2) & layout.F_MQ


async def test_the_configuration_space_describes_the_disk() -> None:
    config = DriveConfig(path="/a/disk", queues=3)
    device = device_on(MemoryDisk(1 << 20), config)
    async with device.lifespan():
        assert len(device.queue_max_sizes) == 3
        space = device.read_config(0, 72)
        capacity, size_max, seg_max = struct.unpack_from("<QII", space)
        assert (capacity, size_max, seg_max) == (2048, 0, limits.QUEUE_SIZE - 2)
        assert struct.unpack_from("<IBBHI", space, 20) == (512, 3, 0, 8, 0)
        assert struct.unpack_from("<BxH", space, 32) == (1, 3)
        assert struct.unpack_from("<IIIIIB", space, 36) == (1 << 21, 16, 8, 1 << 21, 16, 1)


FIELDS_OF = {
    layout.F_CONFIG_WCE: (32, 33),
    layout.F_MQ: (34, 36),
    layout.F_DISCARD: (36, 48),
    layout.F_WRITE_ZEROES: (48, 57),
}
"""Where in the configuration space a feature's fields are (5.2.4)."""


@pytest.mark.parametrize("drive", [{}, {"queues": 2}, {"writeback": False}, {"read_only": True}])
async def test_a_field_of_a_feature_that_is_not_offered_is_zero(drive: dict[str, Any]) -> None:
    config = DriveConfig(path="/a/disk", **drive)
    device = device_on(MemoryDisk(), config)
    async with device.lifespan():
        space = device.read_config(0, 72)
    for feature, (first, end) in FIELDS_OF.items():
        assert any(space[first:end]) == bool(device.features & feature), hex(feature)


async def test_reads_of_the_configuration_never_leave_it() -> None:
    """Row 4."""
    device = device_on(MemoryDisk())
    assert device.read_config(0, 8) == bytes(8)  # before there is a disk
    async with device.lifespan():
        whole = device.read_config(0, 100)
        assert whole[72:] == bytes(28)
        for offset in range(110):
            for length in (0, 1, 2, 4, 8):
                expected = whole[offset : offset + length].ljust(length, b"\0")
                assert device.read_config(offset, length) == expected
        assert device.read_config(-4, 8) == bytes(8)
        assert device.read_config(0xFFFF_FFF0, 64) == bytes(64)


async def test_of_the_configuration_a_driver_writes_one_field() -> None:
    """Row 5."""
    device = device_on(MemoryDisk())
    async with device.lifespan():
        before = device.read_config(0, 72)
        for offset in range(-8, 80):
            if not offset <= layout.WRITEBACK_OFFSET < offset + 4:
                device.write_config(offset, b"\xff" * 4)
        device.write_config(1 << 33, b"\xff")
        assert device.read_config(0, 72) == before
        device.write_config(layout.WRITEBACK_OFFSET - 2, b"\xff\xff\0\xff")
        assert device.read_config(layout.WRITEBACK_OFFSET, 1) == b"\0"
        device.write_config(layout.WRITEBACK_OFFSET, b"\x07")
        assert device.read_config(layout.WRITEBACK_OFFSET, 1) == b"\x01"


async def test_a_driver_that_wants_no_write_back_has_each_write_flushed_until_it_is_reset() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    device = device_on(disk)
    async with device.lifespan():
        async with guest.running(device):
            device.write_config(layout.WRITEBACK_OFFSET, b"\0")
            for count in range(1, 4):
                assert await guest.write(0, bytes(512)) == S_OK
                assert disk.flushes == count
        async with guest.running(device):
            assert device.read_config(layout.WRITEBACK_OFFSET, 1) == b"\1"
            assert await guest.write(0, bytes(512)) == S_OK
            assert disk.flushes == 3


async def test_a_drive_without_write_back_has_each_write_flushed() -> None:
    disk, guest = MemoryDisk(), GuestBlk()
    config = DriveConfig(path="/a/disk", writeback=False)
    async with guest.attached(device_on(disk, config)):
        assert await guest.write(0, bytes(512)) == S_OK
        assert disk.flushes == 1
