"""What a raw disk does with its file: transfers, space given back, and files that end too soon."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from microvm_devices.blk import raw_disk
from microvm_devices.blk._fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate
from microvm_devices.blk.raw_disk import RawDisk

from .raw_disks import SIZE, opened, views


@contextmanager
def without_fallocate(path: Path, instead: raw_disk.Allocate) -> Iterator[RawDisk]:
    disk = RawDisk(
        os.open(path, os.O_RDWR), size=path.stat().st_size, name="here", allocate=instead
    )
    try:
        yield disk
    finally:
        disk.close()


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
