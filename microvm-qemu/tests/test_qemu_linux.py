"""Linux on this platform: its drivers on our devices, its clock, its panic."""

from collections.abc import Callable, Sequence

import pytest
import trio

from microvm import Machine, MachineConfig
from microvm.abc import Activation, ActiveQueue, MachinePlan, VirtioDevice
from microvm.outcome import OutcomeReason
from microvm.virtio.chain import ChainReader, ChainWriter
from microvm.virtio.ids import DeviceType
from microvm_qemu import _host
from microvm_qemu._platform import QemuPlatform

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

PlanOf = Callable[..., MachinePlan]

SECTOR = 512


class Serving(VirtioDevice):
    """A device with one queue, served request by request."""

    def __init__(self) -> None:
        self.served = 0

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        return (64,)

    def answer(self, request: ChainReader, reply: ChainWriter) -> int:
        """Answer one request and return how much was written."""
        raise NotImplementedError

    async def run(self, activation: Activation) -> None:
        active: ActiveQueue = activation.queues[0]
        while True:
            for chain in active.queue.pop_all():
                written = self.answer(ChainReader(chain), ChainWriter(chain))
                active.queue.add_used(chain.head, written)
                self.served += 1
            active.notify()
            await active.doorbell.wait()


class ZeroDisk(Serving):
    """A disk of zeros."""

    def __init__(self, sectors: int) -> None:
        super().__init__()
        self._capacity = sectors.to_bytes(8, "little")

    @property
    def device_id(self) -> int:
        return DeviceType.BLOCK

    def read_config(self, offset: int, length: int) -> bytes:
        return self._capacity[offset : offset + length].ljust(length, b"\0")

    def answer(self, request: ChainReader, reply: ChainWriter) -> int:
        return reply.write(bytes(reply.remaining))  # data, then VIRTIO_BLK_S_OK, which is 0


class Sevens(Serving):
    """An entropy source whose entropy is 7."""

    @property
    def device_id(self) -> int:
        return DeviceType.ENTROPY

    def answer(self, request: ChainReader, reply: ChainWriter) -> int:
        return reply.write(b"\x07" * min(reply.remaining, 64))


def plan_for_linux(plan_of: PlanOf, platform: QemuPlatform, *devices: VirtioDevice) -> MachinePlan:
    """Our own kernel, talkative, without an init: it probes its devices and panics."""
    from microvm_guest.image import default_image

    words = [*platform.kernel_cmdline(MachineConfig()), "ignore_loglevel", "root=/dev/vda"]
    return plan_of(default_image().kernel, devices, cmdline=" ".join(words))


async def test_linux_without_an_init_is_a_panic(platform: QemuPlatform, plan_of: PlanOf) -> None:
    async with platform.start(plan_for_linux(plan_of, platform)) as machine:
        with trio.fail_after(30):
            outcome = await machine.wait()
    assert outcome.reason is OutcomeReason.PANIC
    assert "Unable to mount root" in outcome.detail
    assert any("Kernel panic" in line for line in outcome.console_tail)


async def test_linux_finds_the_disks_in_the_plans_order(
    platform: QemuPlatform, plan_of: PlanOf
) -> None:
    disks = [ZeroDisk(2048), ZeroDisk(4096), ZeroDisk(6144)]
    async with platform.start(plan_for_linux(plan_of, platform, *disks)) as machine:
        with trio.fail_after(30):
            await machine.wait()
        log = machine._hub.contents.decode()  # type: ignore[attr-defined]
    for name, disk, sectors in zip(("vda", "vdb", "vdc"), disks, (2048, 4096, 6144), strict=True):
        assert f"[{name}] {sectors} 512-byte logical blocks" in log
        assert disk.served > 0


async def test_linuxs_entropy_driver_asks_our_device(
    platform: QemuPlatform, plan_of: PlanOf
) -> None:
    entropy = Sevens()
    async with platform.start(plan_for_linux(plan_of, platform, entropy)) as machine:
        with trio.fail_after(30):
            await machine.wait()
    assert entropy.served > 0


CLOCKS = """
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
dmesg | grep -c 'TSC unstable'
"""


@pytest.mark.skipif(_host.counter_khz() is None, reason="the host does not tell its TSC's rate")
@pytest.mark.parametrize("vcpu_count", [1, 2])
async def test_the_guests_clock_is_the_hosts_counter_however_busy_the_host(
    vcpu_count: int,
) -> None:
    async with Machine(MachineConfig(vcpu_count=vcpu_count, backend="qemu")) as machine:
        result = await machine.run(["sh", "-c", CLOCKS])
    clock, complaints = result.stdout.decode().split()
    assert clock in ("tsc", "tsc-early")
    assert complaints == "0"


async def test_a_guest_that_is_asked_to_powers_itself_off() -> None:
    async with Machine(MachineConfig(backend="qemu", vcpu_count=2)) as machine:
        await machine.wait_ready()
        outcome = await machine.stop()
    assert outcome.reason is OutcomeReason.POWERED_OFF
