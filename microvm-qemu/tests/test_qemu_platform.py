"""Machines on the system's QEMU whose guests are a few bytes long; no Linux is needed."""

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from microvm.abc import Activation, Capability, MachinePlan, RunningMachine, VirtioDevice
from microvm.errors import BackendError, ConfigError, GuestGone, ImageError
from microvm.outcome import OutcomeReason
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.census import Census
from microvm.virtio.ids import DeviceType
from microvm_qemu import plugin
from microvm_qemu._platform import QemuPlatform

pytestmark = pytest.mark.usefixtures("leaves_nothing")

MicroKernel = Callable[..., Path]
PlanOf = Callable[..., MachinePlan]


class Idle(VirtioDevice):
    """A device that no driver ever uses."""

    def __init__(self, kind: int, queues: Sequence[int], config: bytes = b"") -> None:
        self._kind = kind
        self._queues = queues
        self._config = config

    @property
    def device_id(self) -> int:
        return self._kind

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        return self._queues

    def read_config(self, offset: int, length: int) -> bytes:
        return self._config[offset : offset + length].ljust(length, b"\0")

    async def run(self, activation: Activation) -> None:
        await trio.sleep_forever()


VSOCK = Idle(DeviceType.VSOCK, (128, 128, 128), (3).to_bytes(8, "little"))
RNG = Idle(DeviceType.ENTROPY, (64,))
BLK = Idle(DeviceType.BLOCK, (128,), (2048).to_bytes(8, "little"))
FS = Idle(DeviceType.FS, (128, 128), b"a,b=c".ljust(36, b"\0") + (1).to_bytes(4, "little"))


def qemu_pid() -> int:
    """The one child of this process."""
    (pid,) = Census.take().children
    return pid


async def printed(machine: RunningMachine, characters: int = 1) -> None:
    """Wait until the guest has printed so much."""
    while len("".join(machine.console_tail())) < characters:  # noqa: ASYNC110 - tells nobody
        await trio.sleep(0.001)


# --- the ends of a guest ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "text", "reason"),
    [
        ("reset", b"hello\r\n", OutcomeReason.RESET),
        ("reset", b"[1.0] reboot: Restarting system\r\n", OutcomeReason.RESET),
        ("reset", b"[1.0] Kernel panic - not syncing: boo\r\n", OutcomeReason.PANIC),
        ("spin", b"[1.0] ---[ end Kernel panic - not syncing: boo ]---\r\n", OutcomeReason.PANIC),
        ("halt", b"[1.0] reboot: System halted\r\n", OutcomeReason.POWERED_OFF),
        ("halt", b"[1.0] reboot: Power down\r\n", OutcomeReason.POWERED_OFF),
    ],
)
async def test_each_way_a_guest_can_end_is_told_with_its_last_lines(
    platform: QemuPlatform,
    micro_kernel: MicroKernel,
    plan_of: PlanOf,
    ending: str,
    text: bytes,
    reason: OutcomeReason,
) -> None:
    async with platform.start(plan_of(micro_kernel(ending, text))) as machine:
        outcome = await machine.wait()
        assert await machine.wait() is outcome
    assert outcome.reason is reason
    assert outcome.console_tail == (text.decode().strip(),)


async def test_a_guest_that_only_says_it_halts_goes_on(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("spin", b"[1.0] reboot: System halted\r\n")
    async with platform.start(plan_of(kernel)) as machine:
        await printed(machine)
        with trio.move_on_after(1.5) as bound:
            await machine.wait()
        assert bound.cancelled_caught


async def test_a_guest_that_spins_with_interrupts_off_is_stopped_at_once(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    async with platform.start(plan_of(micro_kernel("spin", b"x\n"))) as machine:
        await printed(machine)
        with trio.fail_after(1):
            await machine.kill()
        assert (await machine.wait()).reason is OutcomeReason.STOPPED
        await machine.kill()


async def test_a_console_flood_is_bounded_and_stops_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    async with platform.start(plan_of(micro_kernel("flood"))) as machine:
        await printed(machine, characters=100)
        await machine.pause()
        await machine.resume()
        with trio.fail_after(1):
            await machine.kill()
    assert len("".join(machine.console_tail())) < 1000


async def test_a_paused_guest_says_nothing_until_it_is_resumed(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    async with platform.start(plan_of(micro_kernel("flood"))) as machine:
        await machine.pause()
        await machine.pause()
        assert isinstance(machine, RunningMachine)
        await machine.resume()
        await printed(machine)


async def test_after_its_end_a_machine_can_not_be_paused(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    async with platform.start(plan_of(micro_kernel("reset"))) as machine:
        await machine.wait()
        with pytest.raises(GuestGone):
            await machine.pause()
        with pytest.raises(GuestGone):
            await machine.resume()


# --- devices ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "devices", [[VSOCK], [RNG], [BLK], [FS], [VSOCK, BLK, BLK, RNG, FS, RNG, BLK]]
)
async def test_qemu_takes_each_device_that_is_offered(
    platform: QemuPlatform,
    micro_kernel: MicroKernel,
    plan_of: PlanOf,
    devices: list[VirtioDevice],
) -> None:
    plan = plan_of(micro_kernel("halt"), devices)
    async with platform.start(plan):
        pass
    assert list(plan.timeline.phases) == ["spawn", "qemu"]


async def test_too_many_devices_and_too_much_memory_are_refused_before_anything_runs(
    platform: QemuPlatform, plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(tiny_kernel(tmp_path / "k"), [RNG] * 8, mem_size_mib=1 << 20)
    with pytest.raises(ConfigError) as caught:
        async with platform.start(plan):
            pass
    assert [problem.where for problem in caught.value.problems] == ["mem_size_mib", "devices"]


class Failing(Idle):
    """A device whose configuration can't be read: a bug in a plugin."""

    def read_config(self, offset: int, length: int) -> bytes:
        raise ZeroDivisionError


async def test_a_bug_in_a_device_comes_out_as_it_is_and_leaves_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    plan = plan_of(micro_kernel("spin"), [Failing(DeviceType.BLOCK, (128,))])
    with pytest.raises(ZeroDivisionError):
        async with platform.start(plan):
            await trio.sleep_forever()


# --- QEMU at fault, or against us ------------------------------------------------------------


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


# --- leaving ---------------------------------------------------------------------------------


async def test_100_machines_one_after_another_leave_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("spin")
    for _ in range(100):
        async with platform.start(plan_of(kernel, [VSOCK])):
            pass


async def test_several_machines_at_once_leave_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("reset", b"done\r\n")

    async def one() -> None:
        async with platform.start(plan_of(kernel, [VSOCK])) as machine:
            assert (await machine.wait()).console_tail == ("done",)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)


async def test_the_bodys_error_comes_out_as_it_is(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with platform.start(plan_of(micro_kernel("spin"), [VSOCK])):
            raise ZeroDivisionError


async def test_who_still_waits_after_a_cancelled_machine_hears_that_it_was_stopped(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    started: list[RunningMachine] = []
    with trio.move_on_after(60) as scope:
        async with platform.start(plan_of(micro_kernel("spin"), [VSOCK])) as machine:
            started.append(machine)
            scope.cancel()
            await trio.sleep_forever()
    assert (await started[0].wait()).reason is OutcomeReason.STOPPED


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step that any task takes."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def test_cancelling_at_any_step_of_a_start_leaves_nothing(
    platform: QemuPlatform, micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    kernel = micro_kernel("spin")
    before = Census.take()
    for step in range(1, 400, 3):
        started = False
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with platform.start(plan_of(kernel, [VSOCK, RNG])):
                    started = True
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert Census.take() == before, f"cancelled before step {step}"
        if started and not scope.cancelled_caught:
            return
    pytest.fail("no start was left alone")


PARENT = """
import sys
from pathlib import Path
import trio
from microvm import BootSource, MachineConfig
from microvm.abc import MachinePlan
from microvm.testing.census import Census
from microvm.timeline import BootTimeline
from microvm_qemu import plugin

async def main():
    kernel = Path(sys.argv[1])
    plan = MachinePlan(
        config=MachineConfig(boot=BootSource(kernel=kernel)), kernel=kernel, initrd=None,
        cmdline="", devices=(), timeline=BootTimeline(),
    )
    async with plugin.create({}).start(plan) as machine:
        while not machine.console_tail():
            await trio.sleep(0.001)
        print(*Census.take().children, flush=True)
        await machine.wait()

trio.run(main)
"""


@pytest.mark.usefixtures("platform")
def test_kill_9_of_the_process_ends_its_machine_within_2_s(micro_kernel: MicroKernel) -> None:
    kernel = micro_kernel("spin", b"up\r\n")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(kernel)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout:
        qemu = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            ended, _, _ = select.select([qemu], [], [], 2.0)
            assert ended
        finally:
            os.close(qemu)


async def test_a_qemu_that_starts_when_we_are_gone_already_gives_up_itself(
    platform: QemuPlatform, plan_of: PlanOf, micro_kernel: MicroKernel
) -> None:
    """What `_launcher` relies on where setpriv asks too late for the death signal."""
    from microvm_qemu._process import held_process
    from microvm_qemu._wiring import Cables

    plan = plan_of(micro_kernel("spin"), [VSOCK])
    cables = Cables(1)
    argv = platform._argv(plan, cables)
    for end in (cables.monitor, cables.console, cables.stderr, await cables.device(0)):
        end.close()
    async with held_process(argv, pass_fds=cables.inherited, stderr=cables.far_stderr) as process:
        cables.close()
        with trio.fail_after(10):
            assert await process.wait() != 0


# --- KVM -------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no usable /dev/kvm")
async def test_on_kvm_a_guest_runs_or_its_failure_is_told(
    micro_kernel: MicroKernel, plan_of: PlanOf
) -> None:
    """Real mode runs on any KVM; what a KVM can't run ends as a crash and not as silence."""
    kernel = micro_kernel("reset", b"on kvm\r\n")
    async with plugin.create({"accel": "kvm"}).start(plan_of(kernel)) as machine:
        with trio.fail_after(20):
            outcome = await machine.wait()
    assert outcome.reason in (OutcomeReason.RESET, OutcomeReason.CRASHED)
    if outcome.reason is OutcomeReason.CRASHED:
        assert "internal-error" in outcome.detail


def test_the_plugin_declares_what_the_platform_does() -> None:
    factory = plugin.microvm_register_backend()
    assert factory.name == "qemu"
    assert factory.preference == 50
    assert factory.capabilities == {
        Capability.OWN_KERNEL,
        Capability.VIRTIO_DEVICES,
        Capability.PAUSE,
        Capability.CONSOLE,
    }
