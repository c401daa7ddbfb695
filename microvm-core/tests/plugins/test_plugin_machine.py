"""A whole machine among plugins: what they may change, and what they can't break."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from microvm import BootSource, ConfigError, Machine, MachineConfig, OutcomeReason
from microvm._discovery import Switches
from microvm.config import ConfigProblem, DeviceConfig
from microvm.errors import PluginLoadError, PluginMissing
from microvm.plugins import DeviceFactory, hookimpl
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedBackend, ScriptedPlatform
from microvm.testing.plugins import plugin_manager


class Rig:
    """Machines on a scripted platform, with the given plugins installed."""

    def __init__(self, kernel: Path) -> None:
        self.kernel = tiny_kernel(kernel)
        self.platform = ScriptedPlatform()

    def machine(self, *plugins: object, switches: Switches | None = None, **fields: Any) -> Machine:
        backend = ScriptedBackend(platform=self.platform)
        manager = plugin_manager(
            backend.factory(),
            plugins={f"device/p{index}": plugin for index, plugin in enumerate(plugins)},
            switches=switches,
        )
        config = MachineConfig(boot=BootSource(kernel=self.kernel), provisioners=(), **fields)
        return Machine(config, plugins=manager)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "kernel")


async def test_a_plugin_that_raises_in_every_hook_it_is_told_by_stops_no_machine(rig, caplog):
    class Hostile:
        """Raises what would end a program."""

        @hookimpl
        def microvm_check_config(self):
            raise SystemExit(1)

        @hookimpl
        def microvm_machine_started(self):
            raise GeneratorExit

        @hookimpl
        def microvm_guest_ready(self):
            raise BaseException("anything")

        @hookimpl
        def microvm_machine_stopped(self):
            raise SystemExit(2)

    async with rig.machine(Hostile()) as machine:
        with contextlib.suppress(ConfigError):  # no provisioner runs commands
            await machine.wait_ready()
    assert machine.outcome.reason is OutcomeReason.STOPPED
    assert rig.platform.live == 0
    faults = [r.message for r in caplog.records if r.name == "microvm.plugins"]
    assert len(faults) == 4
    assert all("device/p0" in fault for fault in faults)


async def test_plugins_are_told_of_a_machines_life_in_order(rig):
    told = []

    class Diary:
        @hookimpl
        def microvm_machine_started(self, machine):
            told.append(("started", machine))

        @hookimpl
        def microvm_guest_ready(self, machine, guest):
            told.append(("ready", guest))

        @hookimpl
        def microvm_machine_stopped(self, machine, outcome):
            told.append(("stopped", outcome))

    async with rig.machine(Diary()) as machine:
        with contextlib.suppress(ConfigError):
            await machine.wait_ready()
    assert told == [("started", machine), ("ready", None), ("stopped", machine.outcome)]


async def test_a_machine_that_never_started_is_not_told_to_have_stopped(rig):
    class Diary:
        @hookimpl
        def microvm_machine_stopped(self):
            raise AssertionError("it never started")

        @hookimpl
        def microvm_check_config(self):
            return [ConfigProblem("vcpu_count", "is not to my taste.")]

    with pytest.raises(ConfigError, match="not to my taste"):
        async with rig.machine(Diary()):
            raise AssertionError("never started")
    assert rig.platform.machines == []


async def test_a_plugins_problems_stand_beside_cores_own(rig):
    class Policy:
        @hookimpl
        def microvm_check_config(self, backend):
            yield ConfigProblem("backend", f"{backend} is not allowed.")

    with pytest.raises(ConfigError) as caught:
        async with rig.machine(Policy(), devices=[DeviceConfig(name="rng")]):
            raise AssertionError("never started")
    assert "scripted is not allowed." in str(caught.value)
    assert {problem.where for problem in caught.value.problems} == {"backend", "devices"}


async def test_a_plugins_words_stand_before_the_users_on_the_command_line(rig):
    class Quiet:
        @hookimpl
        def microvm_kernel_cmdline(self, layout):
            return ["quiet", f"arch={layout.arch}"]

    async with rig.machine(Quiet(), cmdline="loglevel=7"):
        (running,) = rig.platform.machines
    words = running.plan.cmdline.split()
    assert words.index("quiet") < words.index("loglevel=7")


async def test_a_broken_plugin_costs_one_warning_and_strict_makes_it_an_error(rig, caplog):
    async with rig.machine(RuntimeError("no luck")):
        pass
    assert len([r for r in caplog.records if r.name == "microvm.plugins"]) == 1
    with pytest.raises(PluginLoadError, match="no luck"):
        async with rig.machine(RuntimeError("no luck"), switches=Switches(strict=True)):
            raise AssertionError("never started")


async def test_a_plugin_that_raises_where_it_decides_keeps_the_machine_from_starting(rig):
    class Bad:
        @hookimpl
        def microvm_kernel_cmdline(self):
            raise SystemExit(1)

    with pytest.raises(PluginLoadError, match="device/p0"):
        async with rig.machine(Bad()):
            raise AssertionError("never started")
    assert rig.platform.machines == []


async def test_a_device_named_in_the_configuration_must_be_there_and_work(tmp_path):
    from microvm.abc import Capability

    def create(options):
        raise SystemExit(3)

    bad = DeviceFactory(name="bad", summary="A device", virtio_id=4, create=create)
    backend = ScriptedBackend(
        capabilities=frozenset(
            {Capability.OWN_KERNEL, Capability.VIRTIO_DEVICES, Capability.OWN_CHANNELS}
        )
    )
    manager = plugin_manager(bad, backend.factory())
    boot = BootSource(kernel=tiny_kernel(tmp_path / "kernel"))
    for name, error in (("bad", PluginLoadError), ("none", PluginMissing)):
        config = MachineConfig(
            boot=boot, provisioners=(), vsock=None, devices=[DeviceConfig(name=name)]
        )
        with pytest.raises(error):
            async with Machine(config, plugins=manager):
                raise AssertionError("never started")
