"""A device of somebody else's in a real guest: docs/examples/microvm-dice, as it is installed."""

import logging
import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio

import microvm_devices.vsock.plugin
import microvm_guest.plugin
import microvm_kvm.plugin
import microvm_qemu.plugin
from microvm import ConfigError, DeviceConfig, GuestError, Machine, MachineConfig
from microvm.abc import Activation, VirtioDevice
from microvm.plugins import DeviceFactory, PluginManager, installed_plugins
from microvm.testing.plugins import plugin_manager
from microvm.virtio.ids import DeviceType

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

OURS = {
    "backend/kvm": microvm_kvm.plugin,
    "backend/qemu": microvm_qemu.plugin,
    "device/vsock": microvm_devices.vsock.plugin,
    "provisioner/agent": microvm_guest.plugin,
}
SEED = 7
REQUEST_BYTES = 64
"""What Linux's virtio-rng asks for at a time, whoever reads: SMP_CACHE_BYTES."""


def plugins_with(*factories: DeviceFactory) -> PluginManager:
    """What is ours, and these."""
    return plugin_manager(*factories, plugins=OURS)


@pytest.fixture
def dice() -> DeviceConfig:
    """The example, as anybody has it who has installed it: by its entry point alone."""
    found = [record for record in installed_plugins().discover() if record.key == "device/dice"]
    assert [record.dist for record in found] == ["microvm-dice"], (
        "It is not installed here: pip install --no-deps ./docs/examples/microvm-dice"
    )
    return DeviceConfig(name="dice", options={"seed": SEED})


def machine_with(*devices: DeviceConfig) -> MachineConfig:
    return MachineConfig(mem_size_mib=64, devices=devices)


READ = ["dd", "if=/dev/hwrng", f"bs={REQUEST_BYTES}", "count=64"]


async def test_a_guest_reads_what_a_strangers_device_hands_out(dice: DeviceConfig) -> None:
    async with Machine(machine_with(dice)) as machine:
        read = (await machine.run(READ, check=True)).stdout
    assert len(read) == 64 * REQUEST_BYTES
    # The kernel takes from the device for itself too, so what a reader gets may have gaps.
    rest = random.Random(SEED).randbytes(1 << 20)
    for at in range(0, len(read), REQUEST_BYTES):
        _, found, rest = rest.partition(read[at : at + REQUEST_BYTES])
        assert found


async def test_a_driver_that_is_bound_anew_finds_a_device_that_begins_anew(
    dice: DeviceConfig,
) -> None:
    rebind = """
        cd /sys/bus/virtio/drivers/virtio_rng && for device in virtio*; do
            echo $device > unbind && echo $device > bind
        done
    """
    first = random.Random(SEED).randbytes(1 << 16)
    async with Machine(machine_with(dice)) as machine:
        for _ in range(10):
            await machine.run(["sh", "-c", rebind], check=True)
            read = (await machine.run(READ, check=True)).stdout
            assert read[:REQUEST_BYTES] in first


async def test_every_wrong_option_is_told_before_anything_starts(dice: DeviceConfig) -> None:
    wrong = DeviceConfig(name=dice.name, options={"seed": "six", "sides": 6})
    with pytest.raises(ConfigError) as caught:
        async with Machine(machine_with(wrong)):
            pytest.fail("it started")
    assert {problem.where for problem in caught.value.problems} == {
        "devices[0].seed",
        "devices[0].sides",
    }


@pytest.mark.qemu
async def test_a_device_of_a_type_that_qemu_can_not_attach_is_refused_before_anything_starts() -> (
    None
):
    def create(options: Any) -> VirtioDevice:
        pytest.fail("it was made")

    gpu = DeviceFactory(name="gpu", summary="pixels", virtio_id=16, create=create)
    with pytest.raises(ConfigError, match=r"'qemu' can't attach 'gpu'.*16"):
        async with Machine(machine_with(DeviceConfig(name="gpu")), plugins=plugins_with(gpu)):
            pytest.fail("it started")


class Failing(VirtioDevice):
    """Fails when its first request comes."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @property
    def device_id(self) -> int:
        return DeviceType.ENTROPY

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        return (16,)

    async def run(self, activation: Activation) -> None:
        await activation.queues[0].doorbell.wait()
        raise self._error


def failing_with(error: Exception) -> PluginManager:
    factory = DeviceFactory(
        name="failing", summary="fails", virtio_id=4, create=lambda options: Failing(error)
    )
    return plugins_with(factory)


async def test_a_device_that_finds_its_driver_at_fault_rests_and_the_machine_runs_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = machine_with(DeviceConfig(name="failing"))
    with caplog.at_level(logging.WARNING):
        async with Machine(config, plugins=failing_with(GuestError("nonsense"))) as machine:
            for _ in range(3):
                await machine.run(["true"], check=True)
    assert "nonsense" in caplog.text


async def test_a_devices_own_bug_ends_the_machine_and_comes_out_as_it_is() -> None:
    config = machine_with(DeviceConfig(name="failing"))
    with pytest.raises(ZeroDivisionError, match="oops"):
        async with Machine(config, plugins=failing_with(ZeroDivisionError("oops"))):
            await trio.sleep_forever()
