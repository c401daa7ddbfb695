"""QEMU at fault, or against us: killed, refusing, talking nonsense, or without descriptors."""

import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from microvm.abc import MachinePlan
from microvm.errors import BackendError, ImageError
from microvm.outcome import OutcomeReason
from microvm.testing.census import Census
from microvm_qemu import plugin
from microvm_qemu._platform import QemuPlatform

from .conftest import MicroKernel, PlanOf
from .idle_devices import RNG, VSOCK, printed

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def qemu_pid() -> int:
    """The one child of this process."""
    (pid,) = Census.take().children
    return pid


async def test_a_qemu_that_is_killed_is_a_crash_told_with_the_console(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    async with platform.start(plan_of(micro_kernel("spin", b"alive\r\n"))) as machine:
        await printed(machine, characters=len("alive"))
        os.kill(qemu_pid(), signal.SIGKILL)
        outcome = await machine.wait()
    assert outcome.reason is OutcomeReason.CRASHED
    assert "SIGKILL" in outcome.detail
    assert outcome.console_tail == ("alive",)


async def test_a_qemu_that_is_terminated_is_a_crash(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    async with platform.start(plan_of(micro_kernel("spin"))) as machine:
        os.kill(qemu_pid(), signal.SIGTERM)
        outcome = await machine.wait()
    assert outcome.reason is OutcomeReason.CRASHED
    assert "signal" in outcome.detail


@pytest.mark.parametrize(
    ("kind", "words"), [("none", "No such file"), ("directory", "directory"), ("empty", "kernel")]
)
async def test_a_kernel_that_qemu_can_not_load_is_an_image_error_with_its_words(
    platform: QemuPlatform, plan_of: PlanOf, tmp_path: Path, kind: str, words: str
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match=words):
        async with platform.start(plan_of(tmp_path / kind)):
            pass


@pytest.mark.parametrize("name", ["a,b=c", "-kernel", "x y", "ü\udcff", "%s$(id)", "a\nb"])
async def test_a_kernel_with_a_hostile_name_boots(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf, name: str
) -> None:
    kernel = micro_kernel("reset", b"here\r\n", name=name)
    async with platform.start(plan_of(kernel)) as machine:
        assert (await machine.wait()).console_tail == ("here",)


async def test_an_option_that_qemu_refuses_is_told_in_its_words(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    odd = plugin.create({"extra_args": ["-nonsense"]})
    with pytest.raises(BackendError, match="invalid option") as caught:
        async with odd.start(plan_of(micro_kernel())):
            pass
    assert "backend_options" in (caught.value.remedy or "")


FAKE = """#!/bin/sh
case "$*" in
*-sandbox*-version*) exit 1 ;;
*-version*) echo "QEMU emulator version 7.2.1" ;;
*"-machine help"*) echo "microvm x" ;;
*"-object help"*) echo "memory-backend-memfd" ;;
*"-device help"*) echo 'name "vhost-user-vsock-device", bus virtio-bus' ;;
*"-accel help"*) echo "tcg" ;;
*) %s ;;
esac
"""


@asynccontextmanager
async def fake_qemu(folder: Path, behaviour: str, plan: MachinePlan) -> AsyncIterator[None]:
    """A machine on a script that passes the probe and then does something else."""
    program = folder / "fake-qemu"
    program.write_text(FAKE % behaviour)
    program.chmod(0o755)
    async with plugin.create({"program": program}).start(plan):
        yield


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("exit 0", "exit code 0"),
        ("exit 7", "exit code 7"),
        ("echo first >&2; echo the reason >&2; exit 1", "the reason"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("printf '\\033[2Jx' >&2; exit 1", r"\\x1b\[2Jx"),
        ("while :; do echo flood; done | head -c 1000000 >&2; exit 1", "floo"),
    ],
)
async def test_a_qemu_that_exits_at_once_is_an_error_with_what_it_said(
    plan_of: PlanOf, tmp_path: Path, behaviour: str, words: str
) -> None:
    with pytest.raises(BackendError, match=words):
        async with fake_qemu(tmp_path, behaviour, plan_of(tmp_path / "kernel", [VSOCK])):
            pass


NONSENSE = """
import os, sys, time
(fd,) = (word.rpartition("=")[2] for word in sys.argv if word.startswith("socket,id=monitor,"))
os.write(int(fd), b"nonsense\\n")
time.sleep(1000)
"""


async def test_a_qemu_whose_monitor_talks_nonsense_is_a_typed_error(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    answer = f"exec {sys.executable} -I -S -c '{NONSENSE}' \"$@\""
    with pytest.raises(BackendError, match="not JSON"):
        async with fake_qemu(tmp_path, answer, plan_of(tmp_path / "kernel")):
            pass


async def test_a_qemu_that_hangs_before_it_is_there_can_be_left(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    with trio.move_on_after(0.2) as bound:
        async with fake_qemu(tmp_path, "exec sleep 1000", plan_of(tmp_path / "kernel", [VSOCK])):
            pass
    assert bound.cancelled_caught


async def test_without_descriptors_the_limit_is_named(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    """Whichever open, pipe or socket is the one that fails."""
    plan = plan_of(micro_kernel("halt"), [VSOCK, RNG])
    _, hard = soft_and_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open("/dev/null", os.O_RDONLY)]  # so that none below `used` is free
    while fillers[-1] <= used:
        fillers.append(os.dup(fillers[0]))
    used = fillers[-1]
    failures = 0
    for spare in range(40):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + spare, hard))
        try:
            async with platform.start(plan):
                pass
        except BackendError:
            failures += 1
        except OSError as error:
            pytest.fail(f"with {spare} descriptors to spare: {error!r}")
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, soft_and_hard)
    for filler in fillers:
        os.close(filler)
    assert 5 < failures < 39
