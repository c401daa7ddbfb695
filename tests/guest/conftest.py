"""What the tests that boot Linux share.

They run on the backend that `microvm run` would take: under QEMU, or on our own VMM where KVM boots
Linux. A session that is about one of them names it in MICROVM_GUESTS_ON, and skips its tests where
it is not what would be taken.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from microvm import BackendUnavailable, MachineConfig
from microvm._assembly import choose_backend
from microvm.plugins import installed_plugins
from microvm.testing.census import Census
from microvm.testing.namespace import ip, tap_interface

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from tools import guest_disks  # noqa: E402

from microvm_guest.image import GuestDisk, Silent, compose  # noqa: E402 - the path comes first

SLOWER = 10 if os.environ.get("MICROVM_LAB") else 1
"""By how much more is to be waited: the lab's CPU is one in software."""

Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


@functools.cache
def chosen() -> tuple[str, str]:
    """The backend that is taken here when none is named, and why; in the lab there is no asking."""
    if os.environ.get("MICROVM_LAB"):
        return "kvm", "the lab has a KVM that boots Linux"
    try:
        _, choice = choose_backend(MachineConfig(), installed_plugins())
    except BackendUnavailable as error:
        return "none", error.message
    return choice.name, choice.reason


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, what is not about the machines that there are here."""
    name, reason = chosen()
    if os.environ.get("MICROVM_GUESTS_ON", name) != name:
        pytest.skip(f"machines here run on {name}: {reason}")
    if item.get_closest_marker("qemu") and name != "qemu":
        pytest.skip("about QEMU's process; the machines here have none")


@pytest.fixture(scope="session", autouse=True)
def interface() -> Iterator[None]:
    """passt wants one with a default route: the lab has none, so it gets one that leads nowhere."""
    if not os.environ.get("MICROVM_LAB"):
        yield
        return
    with tap_interface("mvnowhere", "192.0.2.2/24"):
        ip("route", "add", "default", "via", "192.0.2.1")
        yield


@pytest.fixture(scope="session")
def backend() -> str:
    """The backend that is chosen here when none is named."""
    return chosen()[0]


@pytest.fixture(scope="session")
def slower() -> int:
    """A factor for bounds on time."""
    return SLOWER


@pytest.fixture
def cli() -> Cli:
    """Run the `microvm` command to its end; the bound only keeps a hang from being silent."""

    def run(*words: str, stdin: bytes = b"", **env: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [sys.executable, "-m", "microvm", *words],
            input=stdin,
            capture_output=True,
            timeout=120 * SLOWER,
            check=False,
            env={**os.environ, **env},
        )

    return run


def static_program(name: str, folder: Path) -> bytes:
    """Compile one of this folder's programs for the guest."""
    compiler = shutil.which("musl-gcc") or "gcc"
    binary, source = folder / name, HERE / f"{name}.c"
    subprocess.run(
        [compiler, "-static", "-O2", "-Wall", "-Werror", "-o", str(binary), str(source)],
        check=True,
    )
    return binary.read_bytes()


@pytest.fixture(scope="session")
def vsock_peer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program for the guest that speaks AF_VSOCK; see vsock_peer.c."""
    return static_program("vsock_peer", tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="session")
def hostile_agent(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program that stands in for the agent and does as a script says."""
    return static_program("hostile_agent", tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def system_disk() -> GuestDisk:
    """A Debian with what the tests run in guests; the first time it takes half a minute."""
    return compose(guest_disks.SYSTEM, Silent())


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Descriptors, threads and child processes are as many after the test as before."""
    before = Census.take()
    yield
    assert Census.take() == before
