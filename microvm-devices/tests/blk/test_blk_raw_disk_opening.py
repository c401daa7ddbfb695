"""Raw images and block devices on the host: opened once, locked, never looked into."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from microvm.config import DriveConfig
from microvm.errors import ImageError
from microvm_devices.blk import raw_disk
from microvm_devices.blk._fallocate import PUNCH_HOLE
from microvm_devices.blk.raw_disk import check_drive, open_raw_disk

from .raw_disks import SIZE, opened, views

# --- opening ---------------------------------------------------------------------------------


def assert_refused(path: Path, words: str, *, read_only: bool = False) -> None:
    """By the look before the machine starts and by the opening itself, in the same words."""
    config = DriveConfig(path=path, read_only=read_only)
    for step in (check_drive, open_raw_disk):
        with pytest.raises(ImageError, match=words) as caught:
            step(config)
        assert str(path) in str(caught.value)
        assert caught.value.remedy


def test_what_is_no_disk_is_refused_with_the_reason(tmp_path: Path) -> None:
    fifo, folder, empty, odd = (tmp_path / name for name in ("fifo", "folder", "empty", "odd"))
    os.mkfifo(fifo)
    folder.mkdir()
    empty.touch()
    odd.write_bytes(bytes(513))
    assert_refused(tmp_path / "missing", "there is no such file")
    assert_refused(fifo, "it is a FIFO")
    assert_refused(folder, "it is a directory")
    assert_refused(Path("/dev/zero"), "it is a character device")
    assert_refused(empty, "it is empty")
    assert_refused(odd, "no whole number of sectors")


def test_a_file_that_becomes_a_fifo_while_it_is_opened_is_refused_without_waiting(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    regular = os.stat(image)
    refused: list[ImageError] = []

    def attempt() -> None:
        try:
            open_raw_disk(DriveConfig(path=fifo, read_only=True))
        except ImageError as error:
            refused.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path: regular)
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(20)
    assert "it is a FIFO" in str(refused[0])


def test_nothing_is_made_longer_or_rounded_down_unasked(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(513))
    with pytest.raises(ImageError, match=f"truncate -s 1024 '{odd}'"):
        check_drive(DriveConfig(path=odd))
    assert odd.stat().st_size == 513


@pytest.mark.parametrize(
    ("code", "read_only", "remedy"),
    [
        (errno.EACCES, False, "attach it read-only"),
        (errno.EROFS, False, "attach it read-only"),
        (errno.EACCES, True, "readable for this user"),
        (errno.EBUSY, False, "Stop or unmount"),
        (errno.ENOENT, False, "truncate -s"),
        (errno.EIO, False, None),
    ],
)
def test_each_reason_has_its_remedy(code: int, read_only: bool, remedy: str | None) -> None:
    """For root, too, whom the next test can't be run for."""
    error = OSError(code, os.strerror(code))
    told = raw_disk._unusable(Path("/a/disk"), error, read_only=read_only)
    assert "/a/disk" in told.message
    assert (remedy in (told.remedy or "")) if remedy else told.remedy is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
def test_a_file_without_permission_says_what_would_do(image: Path) -> None:
    image.chmod(0o400)
    assert_refused(image, "Permission denied")
    check_drive(DriveConfig(path=image, read_only=True))


def test_links_are_followed_and_the_file_stays_the_one_that_was_opened(image: Path) -> None:
    link = image.with_name("link")
    link.symlink_to(image)
    with opened(link) as disk:
        link.unlink()
        image.rename(image.with_name("elsewhere"))
        disk.write([memoryview(b"z" * 512)], 0, 512)
    assert image.with_name("elsewhere").read_bytes()[:512] == b"z" * 512


def test_a_read_only_disk_has_a_descriptor_that_can_not_write(image: Path) -> None:
    """Row 38: the second barrier."""
    with opened(image, read_only=True) as disk:
        with pytest.raises(OSError) as caught:
            disk.write(views(512), 0, 512)
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError):
            disk.write_zeroes(0, 512, unmap=True)


@pytest.mark.parametrize("head", [b"QFI\xfb\0\0\0\3" + bytes(504), b"KDMV" + bytes(508)])
def test_the_header_of_another_format_is_data(image: Path, head: bytes) -> None:
    """Row 44: a guest that writes QCOW2's or VMDK's has, the next time, the same raw disk."""
    with opened(image) as disk:
        disk.write([memoryview(head)], 0, 512)
    with opened(image) as disk:
        into = views(512)
        assert disk.size == SIZE
        assert disk.read(into, 0, 512) == 512
        assert bytes(into[0]) == head


# --- block devices ---------------------------------------------------------------------------


@contextmanager
def looped(image: Path, *options: str) -> Iterator[Path]:
    if not shutil.which("losetup") or os.geteuid() != 0:
        pytest.skip("makes a loop device")
    argv = ["losetup", *options, "-f", "--show", str(image)]
    attached = subprocess.run(argv, capture_output=True, text=True)
    if attached.returncode:
        pytest.skip(f"no loop devices here: {attached.stderr}")
    device = attached.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture
def loop_device(image: Path) -> Iterator[Path]:
    with looped(image) as device:
        yield device


def test_a_block_device_of_larger_sectors_takes_the_discards_that_fit_them(image: Path) -> None:
    before = image.read_bytes()
    with looped(image, "-b", "4096") as device, opened(device) as disk:
        disk.discard(SIZE // 2, 4096)
        if PUNCH_HOLE not in disk._modes:
            pytest.skip("this loop device gives no space back")
        disk.discard(512, 512)
        disk.write_zeroes(1024, 512, unmap=True)
        disk.discard(65536, 65536)
        disk.flush()
    after = image.read_bytes()
    assert after[:65536] == before[:1024] + bytes(512) + before[1536:65536]
    assert after[65536:131072] == bytes(65536)


def test_a_block_device_is_a_disk_of_its_size(loop_device: Path, image: Path) -> None:
    before = image.read_bytes()
    check_drive(DriveConfig(path=loop_device))
    with opened(loop_device) as disk:
        assert disk.size == SIZE
        into = views(4096)
        assert disk.read(into, 4096, 4096) == 4096
        assert into[0] == before[4096:8192]
        disk.write([memoryview(b"b" * 4096)], 0, 4096)
        disk.write_zeroes(4096, 8192, unmap=True)
        disk.write_zeroes(12288, 4096, unmap=False)
        disk.discard(65536, 65536)
        disk.flush()
    after = image.read_bytes()
    assert after[:16384] == b"b" * 4096 + bytes(12288)
    assert after[16384:65536] == before[16384:65536]


def test_a_block_device_that_is_in_use_is_refused_unless_it_is_only_read(loop_device: Path) -> None:
    """As when it is mounted: the host holds it exclusively then."""
    with opened(loop_device):
        with pytest.raises(ImageError, match="in use") as caught:
            open_raw_disk(DriveConfig(path=loop_device))
        assert str(loop_device) in str(caught.value)
    with opened(loop_device, read_only=True), opened(loop_device, read_only=True):
        pass


# --- 45: locks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_one_writer_or_any_number_of_readers(
    image: Path, first: bool, second: bool, allowed: bool
) -> None:
    """Row 45, within one process."""
    with opened(image, read_only=first):
        if allowed:
            with opened(image, read_only=second):
                pass
        else:
            with pytest.raises(ImageError, match="in use") as caught:
                open_raw_disk(DriveConfig(path=image, read_only=second))
            assert str(image) in str(caught.value)
    with opened(image, read_only=second):
        pass


HOLD = """
import sys, time
from microvm.config import DriveConfig
from microvm_devices.blk.raw_disk import open_raw_disk
disk = open_raw_disk(DriveConfig(path=sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_another_process_s_lock_ends_with_it_also_by_kill_9(image: Path) -> None:
    """Row 45."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, image], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ImageError, match="in use"):
            open_raw_disk(DriveConfig(path=image, read_only=True))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with opened(image):
        pass


def test_closing_another_descriptor_of_the_file_keeps_the_lock(image: Path) -> None:
    """As POSIX locks would not: a program that embeds us may open the image for itself."""
    with opened(image):
        image.read_bytes()
        with pytest.raises(ImageError, match="in use"):
            open_raw_disk(DriveConfig(path=image))


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_disk_that_is_refused_leaves_no_descriptor(image: Path) -> None:
    with opened(image):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(ImageError):
                open_raw_disk(DriveConfig(path=image))
        assert len(os.listdir("/proc/self/fd")) == before
