"""Machines on the system's QEMU whose guests are a few bytes long; no Linux is needed."""

import os
from pathlib import Path

import pytest
import trio

from microvm.abc import Capability, RunningMachine, VirtioDevice
from microvm.errors import ConfigError, GuestGone
from microvm.outcome import OutcomeReason
from microvm.testing.boot_files import tiny_kernel
from microvm.virtio.ids import DeviceType
from microvm_qemu import plugin
from microvm_qemu._platform import QemuPlatform

from .conftest import MicroKernel, PlanOf
from .idle_devices import BLK, FS, RNG, VSOCK, Idle, printed

pytestmark = pytest.mark.usefixtures("leaves_nothing")


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
