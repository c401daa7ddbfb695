"""A boot file that can't be used is refused by name, quickly, before anything starts."""

import os
import socket
from pathlib import Path

import pytest

from microvm.boot.files import BootFile, check_boot_file
from microvm.errors import ImageError
from microvm.testing.boot_files import bzimage

BOTH: tuple[BootFile, ...] = ("kernel", "initrd")


def refusal(path: Path, what: BootFile, mem_size_mib: int | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        check_boot_file(path, what, mem_size_mib=mem_size_mib)
    assert str(path) in caught.value.message
    assert what in caught.value.message
    assert caught.value.remedy
    return caught.value.message


def test_a_kernel_and_an_initrd_pass(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(bzimage())
    initrd.write_bytes(b"070701 and so on")
    check_boot_file(kernel, "kernel")
    check_boot_file(initrd, "initrd")


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage())
    (tmp_path / "link").symlink_to("kernel")
    check_boot_file(tmp_path / "link", "kernel")


@pytest.mark.parametrize("what", BOTH)
def test_a_missing_file_is_refused(tmp_path: Path, what: BootFile) -> None:
    """Row 67."""
    assert "no such file" in refusal(tmp_path / "nothing", what)


@pytest.mark.parametrize("what", BOTH)
def test_a_link_to_nowhere_is_a_missing_file(tmp_path: Path, what: BootFile) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert "no such file" in refusal(tmp_path / "link", what)


@pytest.mark.parametrize("what", BOTH)
def test_a_link_to_itself_is_refused(tmp_path: Path, what: BootFile) -> None:
    (tmp_path / "link").symlink_to("link")
    assert "can't be opened" in refusal(tmp_path / "link", what)


@pytest.mark.parametrize("what", BOTH)
def test_a_path_through_a_file_is_refused(tmp_path: Path, what: BootFile) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert "can't be opened" in refusal(tmp_path / "file" / "kernel", what)


@pytest.mark.parametrize("what", BOTH)
def test_a_path_with_a_nul_byte_is_refused(what: BootFile) -> None:
    assert "can't be opened" in refusal(Path("a\0b"), what)


@pytest.mark.parametrize("what", BOTH)
def test_a_directory_is_refused(tmp_path: Path, what: BootFile) -> None:
    """Row 67."""
    assert "a directory" in refusal(tmp_path, what)


@pytest.mark.parametrize("what", BOTH)
def test_a_fifo_nobody_writes_to_is_refused_without_waiting(tmp_path: Path, what: BootFile) -> None:
    """Row 67."""
    os.mkfifo(tmp_path / "fifo")
    assert "a FIFO" in refusal(tmp_path / "fifo", what)


@pytest.mark.parametrize("what", BOTH)
def test_a_socket_is_refused(tmp_path: Path, what: BootFile) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert "a socket" in refusal(tmp_path / "socket", what)


@pytest.mark.parametrize("what", BOTH)
def test_an_endless_device_is_refused(what: BootFile) -> None:
    """Row 67."""
    assert "a device" in refusal(Path("/dev/zero"), what)


@pytest.mark.parametrize("what", BOTH)
def test_an_empty_file_is_refused(tmp_path: Path, what: BootFile) -> None:
    """Row 67."""
    (tmp_path / "empty").touch()
    assert "empty" in refusal(tmp_path / "empty", what)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("what", BOTH)
def test_an_unreadable_file_is_refused(tmp_path: Path, what: BootFile) -> None:
    """Row 67."""
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    assert "Permission denied" in refusal(tmp_path / "secret", what)


def test_a_kernel_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage()[:-1])
    assert "cut short: 2047 of 2048 bytes" in refusal(tmp_path / "kernel", "kernel")


def test_kernel_and_initrd_exchanged_are_told(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage())
    (tmp_path / "initrd").write_bytes(b"070701" + bytes(4096))
    assert "an initramfs" in refusal(tmp_path / "initrd", "kernel")
    assert "is a kernel" in refusal(tmp_path / "kernel", "initrd")


@pytest.mark.parametrize("what", BOTH)
def test_a_file_larger_than_the_guests_memory_is_refused(tmp_path: Path, what: BootFile) -> None:
    """Rows 67 and 75."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate((16 << 20) + 1)
    assert "16 MiB" in refusal(tmp_path / "large", what, mem_size_mib=16)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage()[:-1])
    before = set(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "kernel"):
        refusal(path, "kernel")
    assert set(os.listdir("/proc/self/fd")) == before
