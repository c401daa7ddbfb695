"""From drives and devices of a configuration to the plan's devices and kernel words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from microvm import (
    BootSource,
    ConfigError,
    ConsoleConfig,
    DeviceConfig,
    DriveConfig,
    MachineConfig,
    NetConfig,
    RateLimit,
)
from microvm._assembly import assemble
from microvm.abc import Capability, GuestChannels, NetBackend, Provisioner, VirtioDevice
from microvm.config import ConfigProblem
from microvm.errors import PluginMissing
from microvm.plugins import (
    BackendFactory,
    DeviceFactory,
    NetBackendFactory,
    PluginManager,
    ProvisionerFactory,
)
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedBackend
from microvm.testing.plugins import plugin_manager
from microvm.timeline import BootTimeline


class NamedDevice(VirtioDevice):
    """Keeps the options that it was asked for by."""

    device_id = 4
    queue_max_sizes = (16,)

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)

    async def run(self, activation: Any) -> None:
        raise AssertionError


class NamedNet(NetBackend):
    """Keeps its options, and refuses a wrong one."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        if "wrong" in options:
            raise ConfigError(
                "It can't be used:", problems=[ConfigProblem("wrong", "is no option of it.")]
            )

    def lifespan(self, queues: int) -> Any:
        raise AssertionError


def manager(backend: ScriptedBackend) -> PluginManager:
    factories = [
        DeviceFactory(name=name, summary="for tests", virtio_id=4, create=NamedDevice)
        for name in ("vsock", "blk", "net", "dice")
    ]
    string = NetBackendFactory(name="string", summary="for tests", create=NamedNet)
    return plugin_manager(backend.factory(), string, *factories)


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(
        capabilities=frozenset({Capability.OWN_KERNEL, Capability.VIRTIO_DEVICES})
    )


@pytest.fixture
def boot(tmp_path: Path) -> BootSource:
    return BootSource(kernel=tiny_kernel(tmp_path / "kernel"))


def test_the_guest_finds_vsock_first_then_drives_nets_and_the_rest(
    backend: ScriptedBackend, boot: BootSource
) -> None:
    config = MachineConfig(
        boot=boot,
        provisioners=(),
        drives=(DriveConfig(path="/a"), DriveConfig(path="/b", read_only=True)),
        nets=(NetConfig(backend="string"),),
        devices=(DeviceConfig(name="dice", options={"seed": 3}),),
    )
    devices = assemble(config, manager(backend), BootTimeline()).plan.devices
    assert [attached.name for attached in devices] == ["vsock", "blk", "blk", "net", "dice"]
    assert [attached.device.options.get("path") for attached in devices] == [
        None,
        Path("/a"),
        Path("/b"),
        None,
        None,
    ]


class BringsADisk(Provisioner):
    """And would have it be the root where there is none."""

    def drives(self, config: MachineConfig) -> Sequence[DriveConfig]:
        if any(drive.root for drive in config.drives):
            return ()
        return (DriveConfig(path="/brought", root=True, read_only=True),)

    def attach(self, channels: GuestChannels) -> Any:
        raise AssertionError


@pytest.mark.parametrize(("own_root", "count"), [(False, 2), (True, 1)])
def test_disks_that_a_provisioner_brings_stand_behind_the_users_own(
    backend: ScriptedBackend, boot: BootSource, own_root: bool, count: int
) -> None:
    devices = [
        DeviceFactory(name=name, summary="for tests", virtio_id=4, create=NamedDevice)
        for name in ("vsock", "blk")
    ]
    factories = (
        backend.factory(),
        *devices,
        ProvisionerFactory(name="disk", summary="for tests", create=BringsADisk),
    )
    own = DriveConfig(path="/own", root=own_root)
    config = MachineConfig(boot=boot, provisioners=("disk",), drives=(own,))
    plan = assemble(config, plugin_manager(*factories), BootTimeline()).plan
    paths = [one.device.options["path"] for one in plan.devices if one.name == "blk"]
    assert paths == [Path("/own"), Path("/brought")][:count]
    assert plan.config.drives[0] == own
    assert ("root=/dev/vdb ro" in plan.cmdline) == (not own_root)


def test_a_drive_reaches_its_plugin_without_what_the_guest_does_with_it(
    backend: ScriptedBackend, boot: BootSource
) -> None:
    limit = RateLimit(ops_per_s=10)
    drive = DriveConfig(path="/a", root=True, serial="x", rate_limit=limit)
    config = MachineConfig(boot=boot, provisioners=(), vsock=None, drives=(drive,))
    (attached,) = assemble(config, manager(backend), BootTimeline()).plan.devices
    options = attached.device.options
    assert "root" not in options
    assert DriveConfig(**options, root=True) == drive


def test_a_net_reaches_its_plugin_with_its_backend_made(
    backend: ScriptedBackend, boot: BootSource
) -> None:
    net = NetConfig(backend="string", options={"colour": "red"}, mtu=9000, queues=2)
    config = MachineConfig(boot=boot, provisioners=(), vsock=None, nets=(net,))
    (attached,) = assemble(config, manager(backend), BootTimeline()).plan.devices
    options = attached.device.options
    carrier = options.pop("backend")
    assert isinstance(carrier, NamedNet)
    assert carrier.options == {"colour": "red"}
    assert NetConfig(backend="string", options=carrier.options, **options) == net


def test_a_nets_wrong_options_are_told_by_their_place(
    backend: ScriptedBackend, boot: BootSource
) -> None:
    nets = (NetConfig(backend="string"), NetConfig(backend="string", options={"wrong": 1}))
    config = MachineConfig(boot=boot, provisioners=(), nets=nets)
    with pytest.raises(ConfigError) as caught:
        assemble(config, manager(backend), BootTimeline())
    assert [problem.where for problem in caught.value.problems] == ["nets[1].options.wrong"]


def test_a_net_backend_that_is_not_installed_is_told(
    backend: ScriptedBackend, boot: BootSource
) -> None:
    config = MachineConfig(boot=boot, provisioners=(), nets=(NetConfig(backend="strung"),))
    with pytest.raises(PluginMissing, match="'string'"):
        assemble(config, manager(backend), BootTimeline())


@pytest.mark.parametrize(("read_only", "word"), [(False, "rw"), (True, "ro")])
def test_the_kernel_is_told_which_drive_is_the_root(
    backend: ScriptedBackend, boot: BootSource, read_only: bool, word: str
) -> None:
    drives = (DriveConfig(path="/a"), DriveConfig(path="/b", root=True, read_only=read_only))
    config = MachineConfig(boot=boot, provisioners=(), drives=drives)
    words = assemble(config, manager(backend), BootTimeline()).plan.cmdline.split()
    assert [w for w in words if w.startswith("root=") or w in ("ro", "rw")] == [
        "root=/dev/vdb",
        word,
    ]


def test_a_backend_without_devices_of_ours_refuses_a_drive(boot: BootSource) -> None:
    backend = ScriptedBackend(capabilities=frozenset({Capability.OWN_KERNEL}))
    config = MachineConfig(boot=boot, provisioners=(), vsock=None, drives=(DriveConfig(path="/a"),))
    with pytest.raises(ConfigError) as caught:
        assemble(config, manager(backend), BootTimeline())
    (problem,) = caught.value.problems
    assert problem.where == "drives"
    assert problem.remedy == "No backend that is installed can: do without drives."


def able(name: str, **more: Any) -> BackendFactory:
    """Another backend that is installed, and is not the one that was chosen."""
    more = {"capabilities": frozenset(Capability)} | more
    return ScriptedBackend(name=name, preference=90, **more).factory()


@pytest.mark.parametrize(
    ("machine", "where", "remedy"),
    [
        (
            {"devices": (DeviceConfig(name="dice"),)},
            "devices[0]",
            "Use a backend that can (any, some), or do without 'dice'.",
        ),
        (
            {"console": ConsoleConfig(device="virtio")},
            "console",
            "A serial console works with every backend: --console-device serial, "
            'ConsoleConfig(device="serial").',
        ),
    ],
)
def test_who_meets_a_device_that_a_backend_can_not_attach_is_told_what_can(
    backend: ScriptedBackend, boot: BootSource, machine: Any, where: str, remedy: str
) -> None:
    devices = [
        DeviceFactory(name=name, summary="for tests", virtio_id=4, create=NamedDevice)
        for name in ("console", "dice")
    ]
    plugins = plugin_manager(
        attrs.evolve(backend.factory(), virtio_ids={1}),
        attrs.evolve(able("any"), virtio_ids=None),
        attrs.evolve(able("some"), virtio_ids={4}),
        attrs.evolve(able("none"), virtio_ids={1}),
        able("never", capabilities=frozenset()),
        *devices,
    )
    config = MachineConfig(boot=boot, provisioners=(), vsock=None, **machine)
    with pytest.raises(ConfigError) as caught:
        assemble(config, plugins, BootTimeline())
    (problem,) = caught.value.problems
    assert (problem.where, problem.remedy) == (where, remedy)


def test_who_meets_a_capability_that_a_backend_has_not_is_told_who_has(boot: BootSource) -> None:
    backend = ScriptedBackend(capabilities=frozenset({Capability.VIRTIO_DEVICES}))
    plugins = plugin_manager(
        backend.factory(), able("any"), able("never", capabilities=frozenset())
    )
    config = MachineConfig(boot=boot, provisioners=(), vsock=None)
    with pytest.raises(ConfigError) as caught:
        assemble(config, plugins, BootTimeline())
    (problem,) = caught.value.problems
    assert problem.remedy == "Use a backend that can (any), or do without boot."


def named_twice(tmp_path: Path, way: str) -> tuple[Path, Path]:
    """Two names of one disk."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    other = tmp_path / "other"
    if way == "symbolic link":
        other.symlink_to(disk)
    elif way == "hard link":
        other.hardlink_to(disk)
    else:
        other = disk
    return disk, other


@pytest.mark.parametrize("way", ["one name", "symbolic link", "hard link"])
@pytest.mark.parametrize(
    ("read_only", "good"), [((False, False), False), ((True, False), False), ((True, True), True)]
)
def test_a_disk_is_given_twice_only_to_be_read(
    backend: ScriptedBackend,
    boot: BootSource,
    tmp_path: Path,
    way: str,
    read_only: tuple[bool, bool],
    good: bool,
) -> None:
    one, other = (
        DriveConfig(path=path, read_only=only)
        for path, only in zip(named_twice(tmp_path, way), read_only, strict=True)
    )
    config = MachineConfig(
        boot=boot, provisioners=(), drives=(one, DriveConfig(path="/no/such"), other)
    )
    if good:
        assert len(assemble(config, manager(backend), BootTimeline()).plan.devices) == 4
        return
    with pytest.raises(ConfigError) as caught:
        assemble(config, manager(backend), BootTimeline())
    (problem,) = caught.value.problems
    assert (problem.where, problem.what) == ("drives[2]", "is the disk of drives[0].")
    assert problem.remedy is not None
    assert "read-only" in problem.remedy


def test_a_disk_that_a_provisioner_brings_is_not_the_users_own(
    backend: ScriptedBackend, boot: BootSource
) -> None:
    provisioner = ProvisionerFactory(name="disk", summary="for tests", create=BringsADisk)
    devices = [
        DeviceFactory(name=name, summary="for tests", virtio_id=4, create=NamedDevice)
        for name in ("vsock", "blk")
    ]
    own = DriveConfig(path="/brought")
    config = MachineConfig(boot=boot, provisioners=("disk",), drives=(own,))
    plugins = plugin_manager(backend.factory(), provisioner, *devices)
    with pytest.raises(ConfigError, match=r"drives\[1\]: is the disk of drives\[0\]"):
        assemble(config, plugins, BootTimeline())
