"""What the lab promises to what runs in it; on a host of its own, what is needed of that."""

import fcntl
import os
import socket
import sys
from pathlib import Path

import pytest

KVM_GET_API_VERSION = 0xAE00
KVM_API_VERSION = 12
"""Linux, Documentation/virt/kvm/api.rst, section 4.1: anything else is to be refused."""

in_the_lab = pytest.mark.skipif(not os.environ.get("MICROVM_LAB"), reason="about the lab alone")


def test_kvm_speaks_the_one_version_there_is() -> None:
    with open("/dev/kvm", "rb", buffering=0) as kvm:
        assert fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION


@in_the_lab
def test_the_clock_is_one_that_kvm_hands_on_to_guests() -> None:
    clock = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    assert clock.read_text().strip() == "tsc"


@in_the_lab
def test_this_checkout_and_this_python_are_there_and_can_be_written_over(tmp_path: Path) -> None:
    assert Path(sys.executable).is_file()
    beside = Path(__file__).with_name("written_in_the_lab")
    beside.write_text("gone with the lab\n")
    beside.unlink()
    assert tmp_path.is_relative_to("/run/tmp")


def test_loopback_and_shared_memory_work() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert os.access("/dev/shm", os.W_OK)
