"""Which devices a configuration asks for, each made by its plugin."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from microvm._backend_lacks import attaches, not_attachable
from microvm.abc import AttachedDevice, Capability, GuestChannels
from microvm.config import (
    ConsoleDevice,
    DeviceConfig,
    DriveConfig,
    MachineConfig,
    NetConfig,
    VsockConfig,
)

if TYPE_CHECKING:
    from microvm._assembly.problems import Problems
    from microvm.abc import NetBackend
    from microvm.plugins import BackendFactory, PluginManager

CONSOLE = "console"
"""The device plugin that a virtio console comes from."""


def make_devices(
    config: MachineConfig, backend: BackendFactory, plugins: PluginManager, problems: Problems
) -> tuple[AttachedDevice, ...]:
    """Every device, as the guest finds them; of what can't be made a problem is kept."""
    if Capability.VIRTIO_DEVICES not in backend.capabilities:
        return ()
    wanted = _wanted_devices(config, plugins, problems)
    made = (_make_device(device, backend, plugins, problems) for device in wanted)
    return tuple(device for device in made if device is not None)


@attrs.frozen(kw_only=True)
class _WantedDevice:
    """A device in the form that plugins take, and where the configuration asks for it."""

    where: str
    config: DeviceConfig


def _wanted_devices(
    config: MachineConfig, plugins: PluginManager, problems: Problems
) -> list[_WantedDevice]:
    """Every device, as the guest finds them: vsock, drives, nets, console, others."""
    wanted = []
    if config.vsock is not None:
        wanted.append(_WantedDevice(where="vsock", config=device_of_vsock(config.vsock)))
    wanted += [
        _WantedDevice(where=f"drives[{index}]", config=device_of_drive(drive))
        for index, drive in enumerate(config.drives)
    ]
    for index, net in enumerate(config.nets):
        where = f"nets[{index}]"
        backend = _net_backend(net, where, plugins, problems)
        if backend is not None:
            wanted.append(_WantedDevice(where=where, config=device_of_net(net, backend)))
    named = {device.name for device in config.devices}
    if config.console.device is ConsoleDevice.VIRTIO and CONSOLE not in named:
        wanted.append(_WantedDevice(where="console", config=DeviceConfig(name=CONSOLE)))
    wanted += [
        _WantedDevice(where=f"devices[{index}]", config=device)
        for index, device in enumerate(config.devices)
    ]
    return wanted


def device_of_vsock(vsock: VsockConfig) -> DeviceConfig:
    """The vsock device, as its plugin is asked for it."""
    return DeviceConfig(
        name="vsock", options={"guest_cid": vsock.guest_cid, "uds_path": vsock.uds_path}
    )


def device_of_drive(drive: DriveConfig) -> DeviceConfig:
    """A drive, as the plugin of disks is asked for it: what the guest does with it is not in it."""
    options = {
        field.name: getattr(drive, field.name)
        for field in attrs.fields(DriveConfig)
        if field.name != "root"
    }
    return DeviceConfig(name="blk", options=options)


def device_of_net(net: NetConfig, backend: NetBackend) -> DeviceConfig:
    """A network device, as its plugin is asked for it, with what carries its frames."""
    options = {
        field.name: getattr(net, field.name)
        for field in attrs.fields(NetConfig)
        if field.name != "options"
    }
    return DeviceConfig(name="net", options=options | {"backend": backend})


def _net_backend(
    net: NetConfig, where: str, plugins: PluginManager, problems: Problems
) -> NetBackend | None:
    factory = problems.attempt(f"{where}.backend", partial(plugins.load_net_backend, net.backend))
    if factory is None:
        return None
    return problems.attempt(f"{where}.options", partial(factory.create, net.options))


def _make_device(
    wanted: _WantedDevice, backend: BackendFactory, plugins: PluginManager, problems: Problems
) -> AttachedDevice | None:
    name, where = wanted.config.name, wanted.where
    factory = problems.attempt(where, partial(plugins.load_device, name))
    if factory is None:
        return None
    if not attaches(backend, factory):
        problems.add([not_attachable(where, backend, factory, plugins)])
        return None
    device = problems.attempt(where, partial(factory.create, wanted.config.options))
    return None if device is None else AttachedDevice(name=name, device=device)


def channels_of(devices: tuple[AttachedDevice, ...]) -> GuestChannels | None:
    """The device that carries streams into the guest, if there is one."""
    return next((d.device for d in devices if isinstance(d.device, GuestChannels)), None)
