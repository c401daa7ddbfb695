"""Raw images and block devices on the host: opened once, locked, never looked into."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from microvm.config import DriveConfig
from microvm.errors import ImageError
from microvm_devices.blk import raw_disk
from microvm_devices.blk._fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate
from microvm_devices.blk.raw_disk import RawDisk, check_drive, open_raw_disk

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[RawDisk]:
    disk = open_raw_disk(DriveConfig(path=path, read_only=read_only))
    try:
        yield disk
    finally:
        disk.close()


@contextmanager
def without_fallocate(path: Path, instead: raw_disk.Allocate) -> Iterator[RawDisk]:
    disk = RawDisk(
        os.open(path, os.O_RDWR), size=path.stat().st_size, name="here", allocate=instead
    )
    try:
        yield disk
    finally:
        disk.close()


def views(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for length in lengths]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


# --- transfers -------------------------------------------------------------------------------


def test_data_goes_to_and_from_buffers_of_any_number_and_size(image: Path) -> None:
    with opened(image) as disk:
        data = os.urandom(5000)
        disk.write(
            [memoryview(data)[:1], memoryview(data)[1:700], memoryview(data)[700:]], 77, 5000
        )
        into = views(1, 2, 3, 4994)
        assert disk.read(into, 77, 5000) == 5000
        assert b"".join(into) == data
        disk.flush()
    assert image.read_bytes()[77:5077] == data


def test_more_buffers_than_one_call_takes(image: Path) -> None:
    count = 2 * os.sysconf("SC_IOV_MAX") + 7
    data = os.urandom(3 * count)
    with opened(image) as disk:
        disk.write([memoryview(data)[at : at + 3] for at in range(0, len(data), 3)], 5, len(data))
        into = views(*[3] * count)
        assert not disk.read_cached(into, 5, len(data))
        assert disk.read(into, 5, len(data)) == len(data)
    assert b"".join(into) == data


def test_short_transfers_go_on_where_they_stopped() -> None:
    """Row 42: EINTR after some bytes, a file system that takes less."""
    written: list[tuple[bytes, int]] = []

    def call(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        data = b"".join(buffers)[:7]
        written.append((data, offset))
        return len(data)

    data = os.urandom(100)
    cuts = [memoryview(data)[a:b] for a, b in ((0, 1), (1, 7), (7, 8), (8, 30), (30, 100))]
    assert raw_disk._transfer(call, 3, cuts, 1000, 100) == 100
    assert b"".join(part for part, _ in written) == data
    assert [offset for _, offset in written] == list(range(1000, 1100, 7))


def test_a_file_that_takes_no_more_is_an_error(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: 0)
    with opened(image) as disk, pytest.raises(OSError):
        disk.write(views(512), 0, 512)


def test_cached_data_is_read_at_once_where_the_file_system_can(image: Path) -> None:
    with opened(image) as disk:
        into = views(4096)
        if disk.read_cached(into, 8192, 4096):
            assert into[0] == image.read_bytes()[8192:12288]
        else:
            assert (
                not disk._can_nowait
            )  # a file in the cache, and yet: it can't, and won't be asked


# --- space -----------------------------------------------------------------------------------


def test_discarded_space_goes_back_to_the_host(image: Path) -> None:
    with opened(image) as disk:
        before = allocated(image)
        disk.discard(0, SIZE // 2)
        if PUNCH_HOLE in disk._modes:
            assert allocated(image) <= before - SIZE // 2
    assert image.stat().st_size == SIZE


@pytest.mark.parametrize("unmap", [True, False])
def test_zeroed_ranges_read_as_zeros_and_their_neighbours_as_before(
    image: Path, unmap: bool
) -> None:
    before = image.read_bytes()
    with opened(image) as disk:
        disk.write_zeroes(512, 300 * 512, unmap=unmap)
    after = image.read_bytes()
    assert after == before[:512] + bytes(300 * 512) + before[301 * 512 :]


@pytest.mark.parametrize("unmap", [True, False])
def test_space_is_given_back_only_where_the_driver_allows_it(tmp_path: Path, unmap: bool) -> None:
    """5.2.6.2: without the flag, what a driver has reserved stays reserved."""
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 8192)
    asked: list[int] = []
    with without_fallocate(path, lambda fd, mode, offset, length: asked.append(mode)) as disk:
        disk.write_zeroes(0, 4096, unmap=unmap)
    assert asked == [(PUNCH_HOLE if unmap else ZERO_RANGE) | KEEP_SIZE]


@pytest.mark.parametrize("unmap", [True, False])
def test_zeros_are_written_where_the_file_system_has_no_better_way(
    tmp_path: Path, unmap: bool
) -> None:
    image = tmp_path / "disk.img"
    before = os.urandom(5 << 20)
    image.write_bytes(before)
    tried: list[int] = []

    def unsupported(fd: int, mode: int, offset: int, length: int) -> None:
        tried.append(mode)
        raise OSError(errno.EOPNOTSUPP, "not supported")

    length = (3 << 20) + 512
    with without_fallocate(image, unsupported) as disk:
        disk.discard(0, 512)
        for _ in range(2):
            disk.write_zeroes(512, length, unmap=unmap)
    assert len(tried) == 2  # each way once
    assert image.read_bytes() == before[:512] + bytes(length) + before[512 + length :]


@pytest.mark.parametrize("unmap", [True, False])
def test_a_range_that_does_not_fit_the_hosts_sectors_costs_the_next_one_nothing(
    image: Path, unmap: bool
) -> None:
    """A block device of 4 KiB sectors says EINVAL to less, and to less alone."""
    before = image.read_bytes()
    done: list[tuple[int, int, int]] = []

    def sectors_of_4096(fd: int, mode: int, offset: int, length: int) -> None:
        if offset % 4096 or length % 4096:
            raise OSError(errno.EINVAL, "Invalid argument")
        done.append((mode & ~KEEP_SIZE, offset, length))

    with without_fallocate(image, sectors_of_4096) as disk:
        disk.discard(512, 512)
        disk.write_zeroes(1024, 512, unmap=unmap)
        assert done == []
        disk.discard(4096, 4096)
        disk.write_zeroes(8192, 4096, unmap=unmap)
    assert done == [
        (PUNCH_HOLE, 4096, 4096),
        (PUNCH_HOLE if unmap else ZERO_RANGE, 8192, 4096),
    ]
    assert image.read_bytes() == before[:1024] + bytes(512) + before[1536:]


def test_other_errors_of_fallocate_are_errors(image: Path) -> None:
    def fails(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EIO, "no")

    with without_fallocate(image, fails) as disk:
        for step in (
            lambda: disk.discard(0, 512),
            lambda: disk.write_zeroes(0, 512, unmap=True),
            lambda: disk.write_zeroes(0, 512, unmap=False),
        ):
            with pytest.raises(OSError):
                step()


def test_fallocate_tells_its_errors(image: Path) -> None:
    fd = os.open(image, os.O_RDWR)
    try:
        with pytest.raises(OSError) as caught:
            fallocate(fd, PUNCH_HOLE, 0, 512)  # without KEEP_SIZE
        assert caught.value.errno == errno.EOPNOTSUPP
    finally:
        os.close(fd)


# --- 41: truncated by the host ---------------------------------------------------------------


def test_a_file_that_was_cut_off_has_errors_beyond_its_end_and_is_not_made_longer(
    image: Path,
) -> None:
    """Row 41."""
    before = image.read_bytes()
    with opened(image) as disk:
        os.truncate(image, 4096)
        assert disk.size == SIZE
        assert disk.read(views(4096), 0, 4096) == 4096
        assert disk.read(views(4096), 2048, 4096) == 2048
        assert disk.read(views(4096), 8192, 4096) == 0
        assert not disk.read_cached(views(4096), 8192, 4096)
        for step in (
            lambda: disk.write(views(512), 4096, 512),
            lambda: disk.write(views(1024), 4096 - 512, 1024),
            lambda: disk.write_zeroes(8192, 512, unmap=False),
            lambda: disk.discard(8192, 512),
        ):
            with pytest.raises(OSError, match="shorter"):
                step()
    assert image.read_bytes() == before[:4096]


# --- 42: no room -----------------------------------------------------------------------------


def test_the_limit_on_file_sizes_is_an_error_and_not_the_end(image: Path) -> None:
    """Row 42: EFBIG, since Python ignores SIGXFSZ. What fits is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(image) as disk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            with pytest.raises(OSError) as caught:
                disk.write([memoryview(b"x" * 8192)], 4096, 8192)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.errno == errno.EFBIG
        disk.write([memoryview(b"y" * 8192)], 4096, 8192)
    assert image.read_bytes()[4096:12288] == b"y" * 8192


FULL = """
import os, sys
from pathlib import Path
from microvm.config import DriveConfig
from microvm_devices.blk.raw_disk import open_raw_disk
folder = Path(sys.argv[1])
image = folder / "disk.img"
with open(image, "wb") as file:
    file.truncate(4 << 20)
disk = open_raw_disk(DriveConfig(path=image))
data = memoryview(b"x" * (1 << 20))
for at in range(4):
    try:
        disk.write([data], at << 20, 1 << 20)
    except OSError as error:
        print(at, error.errno)
        break
(folder / "filler").unlink()
disk.write([data], at << 20, 1 << 20)
disk.flush()
print(image.read_bytes()[: (at + 1) << 20] == b"x" * ((at + 1) << 20))
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a tmpfs")
def test_a_full_file_system_is_an_error_and_space_that_is_freed_can_be_used(tmp_path: Path) -> None:
    """Row 42: ENOSPC after a short write; a file system of 2 MiB in a namespace of its own."""
    script = (
        f"mount -t tmpfs -o size=2M none {tmp_path} && "
        f"head -c 600000 /dev/zero > {tmp_path}/filler && "
        f'exec "$0" -c "$1" {tmp_path}'
    )
    argv = ["unshare", "-m", "sh", "-c", script, sys.executable, FULL]
    done = subprocess.run(argv, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.stdout.split() == ["1", str(errno.ENOSPC), "True"], done.stderr


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
