"""Captures: what is in the file, and what a slow or full disk does."""

import os
import resource
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from microvm.abc import Offload
from microvm.config import DriveConfig
from microvm.errors import ConfigError
from microvm_devices.blk.raw_disk import open_raw_disk
from microvm_devices.net.capture import CaptureFile
from microvm_devices.net.device import NetDevice
from microvm_devices.net.packet import PLAIN
from microvm_devices.net.testing import (
    MAC,
    PEER,
    ScriptedLink,
    ScriptedNet,
    ethernet,
    running,
    settings,
)

HEADER_BYTES = 24
RECORD_BYTES = 16


def frames_in(path: Path) -> list[tuple[int, bytes]]:
    """Time in nanoseconds and content; the format is of the pcap Internet-Draft."""
    data = path.read_bytes()
    assert struct.unpack("<IHHiIII", data[:HEADER_BYTES]) == (0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    frames, at = [], HEADER_BYTES
    while at < len(data):
        seconds, ns, kept, length = struct.unpack_from("<IIII", data, at)
        assert kept == length
        at += RECORD_BYTES
        frames.append((seconds * 10**9 + ns, data[at : at + kept]))
        at += kept
    assert at == len(data)
    return frames


@pytest.mark.parametrize("vnet_header", [False, True])
async def test_both_directions_are_there_in_order_and_begin_with_ethernet(
    tmp_path: Path, vnet_header: bool
) -> None:
    path = tmp_path / "frames.pcap"
    net = ScriptedNet(vnet_header=vnet_header, offloads=Offload(0))
    device = NetDevice(net, settings(capture=path))
    head = PLAIN if vnet_header else b""
    inward = ethernet(b"in", source=PEER, to=MAC)
    async with running(device) as driver:
        driver.send(ethernet(b"out"), cut=[5, 12, 20])
        assert await net.link.sent() == head + ethernet(b"out")
        driver.offer(1530)
        net.link.give(head + inward)
        await driver.received()
    kept = frames_in(path)
    assert [frame for _, frame in kept] == [ethernet(b"out"), inward]
    assert kept[0][0] <= kept[1][0]
    assert path.stat().st_mode & 0o777 == 0o600
    assert device.counters()["capture_dropped"] == 0


async def test_of_a_frame_that_was_cut_off_what_came_is_kept_and_of_an_older_file_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c"
    path.write_bytes(bytes(10_000))
    path.chmod(0o644)
    inner = ScriptedLink()
    inner.give(bytes(100))
    capture = CaptureFile(path)
    async with capture.open():
        (link,) = capture.links([inner], vnet_header=False)
        assert link.receive([memoryview(bytearray(60))]) == 100
    assert [len(frame) for _, frame in frames_in(path)] == [60]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"theirs")
    path.chmod(0o666)
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="it is another user's"):
        async with CaptureFile(path).open():
            pytest.fail("it was opened")
    assert path.read_bytes() == b"theirs"
    assert path.stat().st_mode & 0o777 == 0o666


async def test_times_are_in_nanoseconds(tmp_path: Path) -> None:
    capture = CaptureFile(tmp_path / "c", clock_ns=lambda: 1_700_000_000_123_456_789)
    async with capture.open():
        capture.add([b"abc"], 0, 3)
    assert frames_in(tmp_path / "c") == [(1_700_000_000_123_456_789, b"abc")]


async def test_what_the_buffer_has_no_room_for_is_missing_and_counted(tmp_path: Path) -> None:
    capture = CaptureFile(tmp_path / "c", buffer_bytes=1000)
    async with capture.open():
        for index in range(20):
            capture.add([bytes([index]) * 100], 0, 100)
        assert 8 <= capture.dropped < 20
        dropped = capture.dropped
        await trio.testing.wait_all_tasks_blocked(0.01)
        capture.add([b"again"], 0, 5)
    assert capture.dropped == dropped
    kept = [frame for _, frame in frames_in(tmp_path / "c")]
    assert len(kept) == 20 - dropped + 1
    assert kept[-1] == b"again"


async def test_the_file_ends_before_it_is_too_long(tmp_path: Path) -> None:
    """A record's header counts: with the 13th frame alone it would be 996 bytes long."""
    capture = CaptureFile(tmp_path / "c", max_file_bytes=1000)
    async with capture.open():
        for _ in range(50):
            capture.add([bytes(60)], 0, 60)
            await trio.lowlevel.checkpoint()
    assert (tmp_path / "c").stat().st_size <= 1000
    assert len(frames_in(tmp_path / "c")) == 12
    assert capture.dropped == 38


async def test_a_file_size_limit_ends_the_capture_and_not_the_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """EFBIG stands for a full disk: Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capture = CaptureFile(tmp_path / "c")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        async with capture.open():
            capture.add([bytes(1000)], 0, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ends here" in caplog.text
    assert (tmp_path / "c").stat().st_size == 200


class FullForOneWrite(CaptureFile):
    """On a disk that is full for the first write; a frame comes while that is under way."""

    def _write(self, fd: int, data: bytes) -> None:
        if os.fstat(fd).st_size:
            super()._write(fd, data)
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            trio.from_thread.run_sync(self.add, [bytes(50)], 0, 50)
            super()._write(fd, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_behind_a_write_that_failed_nothing_more_is_written(tmp_path: Path) -> None:
    """It would stand behind half a record."""
    path = tmp_path / "c"
    capture = FullForOneWrite(path)
    async with capture.open():
        capture.add([bytes(1000)], 0, 1000)
        await trio.testing.wait_all_tasks_blocked(0.01)
        capture.add([b"lost"], 0, 4)
    assert path.stat().st_size == 200
    assert capture.dropped >= 1


async def test_a_file_that_can_not_be_written_is_told_before_anything_starts(
    tmp_path: Path,
) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "no" / "such", link, tmp_path / "fifo", tmp_path):
        device = NetDevice(ScriptedNet(), settings(capture=path))
        with pytest.raises(ConfigError, match=r"capture: .* can't be written"):
            async with device.lifespan():
                pytest.fail("it was written")


async def test_a_capture_is_of_one_card_at_a_time(tmp_path: Path) -> None:
    """Across machines too: what the first one kept stays, and stays whole."""
    path = tmp_path / "c"
    first, second = CaptureFile(path), CaptureFile(path)
    async with first.open():
        first.add([b"A" * 60], 0, 60)
        with pytest.raises(ConfigError, match="in use") as caught:
            async with second.open():
                pytest.fail("it was opened twice")
        assert str(path) in str(caught.value)
        assert caught.value.remedy is not None
        assert "a file of its own" in caught.value.remedy
        first.add([b"C" * 60], 0, 60)
    assert [frame[:1] for _, frame in frames_in(path)] == [b"A", b"C"]
    async with second.open():
        second.add([b"B" * 60], 0, 60)
    assert [frame[:1] for _, frame in frames_in(path)] == [b"B"]


async def test_a_capture_never_empties_a_disk_in_use(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious" * 64)
    path.chmod(0o644)
    disk = open_raw_disk(DriveConfig(path=path, read_only=True))
    try:
        with pytest.raises(ConfigError, match="in use"):
            async with CaptureFile(path).open():
                pytest.fail("it was opened")
    finally:
        disk.close()
    assert path.read_bytes() == b"precious" * 64
    assert path.stat().st_mode & 0o777 == 0o644
