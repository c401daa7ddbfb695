"""What a plugin is written with: the hook marker, the factory records, and small hook values.

A plugin module imports `hookimpl` and one record from here, and returns the record from its
registration hook. Nothing heavy belongs in that module: the record's callables import what they
need when they are called.

`PluginManager` and `installed_plugins` are the other side, for whoever assembles machines; they
are fetched on first use, so that a plugin module does not pay for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import attrs
import pluggy
from attrs import validators

from microvm.errors import ConfigError

if TYPE_CHECKING:
    from microvm._discovery import PluginGroup, PluginRecord
    from microvm._plugin_manager import PluginManager, PluginState, PluginStatus, installed_plugins
    from microvm.abc import (
        Capability,
        HostedPlatform,
        Hypervisor,
        MachinePlan,
        NetBackend,
        ProbeReport,
        Provisioner,
        VirtioDevice,
    )
    from microvm.arch.x86_64.registers import RegisterValue
    from microvm.memory import GuestMemory

__all__ = [
    "BackendFactory",
    "BootProtocol",
    "DeviceFactory",
    "GuestLayout",
    "NetBackendFactory",
    "PluginGroup",
    "PluginManager",
    "PluginRecord",
    "PluginState",
    "PluginStatus",
    "ProvisionerFactory",
    "hookimpl",
    "installed_plugins",
]

PROJECT = "microvm"

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of a hook."""

# Records come from strangers: a wrong one is refused when it is made, inside the plugin's own
# hook, so that the error names the plugin.
_TEXT = validators.and_(validators.instance_of(str), validators.min_len(1))
_CALLABLE: Any = validators.is_callable()


def _capabilities(given: Iterable[Capability]) -> frozenset[Capability]:
    return frozenset(given)


def _virtio_ids(given: Iterable[int] | None) -> frozenset[int] | None:
    return None if given is None else frozenset(given)


@attrs.frozen(kw_only=True)
class BackendFactory:
    """A backend on offer."""

    name: str = attrs.field(validator=_TEXT)
    """The same as the entry point's."""
    summary: str = attrs.field(validator=_TEXT)
    """One line, for lists."""
    capabilities: frozenset[Capability] = attrs.field(converter=_capabilities)
    probe: Callable[[Mapping[str, Any]], ProbeReport] = attrs.field(validator=_CALLABLE)
    """Gets `MachineConfig.backend_options`; quick, polite, and never raises."""
    create: Callable[[Mapping[str, Any]], HostedPlatform | Hypervisor] = attrs.field(
        validator=_CALLABLE
    )
    """Gets the same options, once the probe has said usable."""
    preference: int = attrs.field(default=50, validator=validators.instance_of(int))
    """Among usable backends the lowest wins: hypervisors 10, software emulation 50."""
    virtio_ids: frozenset[int] | None = attrs.field(default=None, converter=_virtio_ids)
    """Virtio device ids it can attach; None for any."""


@attrs.frozen(kw_only=True)
class DeviceFactory:
    """A device on offer."""

    name: str = attrs.field(validator=_TEXT)
    """The same as the entry point's."""
    summary: str = attrs.field(validator=_TEXT)
    """One line, for lists."""
    virtio_id: int = attrs.field(validator=validators.instance_of(int))
    """Virtio device id (virtio 1.2, section 5 Device Types)."""
    create: Callable[[Mapping[str, Any]], VirtioDevice] = attrs.field(validator=_CALLABLE)
    """Gets `DeviceConfig.options`; raises `ConfigError` for one that it does not know. What it
    makes may never be used: with `isolation="process"` options are checked so, and the device made
    again in the worker. What must be given back is taken in `VirtioDevice.lifespan`."""


def no_cli_options(text: str) -> Mapping[str, Any]:
    """The options of a net backend that takes none on the command line.

    Raises:
        ConfigError: something stands behind the name.
    """
    if text:
        raise ConfigError(f"It takes nothing behind its name, and was given {text!r}.")
    return {}


@attrs.frozen(kw_only=True)
class NetBackendFactory:
    """A net backend on offer: what carries a network device's frames on the host."""

    name: str = attrs.field(validator=_TEXT)
    """The same as the entry point's."""
    summary: str = attrs.field(validator=_TEXT)
    """One line, for lists and for ``microvm run --help``."""
    create: Callable[[Mapping[str, Any]], NetBackend] = attrs.field(validator=_CALLABLE)
    """Gets `NetConfig.options`; raises `ConfigError` for one that it does not know. What it makes
    may never be used, as with `DeviceFactory.create`: what must be given back is taken in
    `NetBackend.lifespan`."""
    syntax: str = attrs.field(
        default=attrs.Factory(lambda self: self.name, takes_self=True), validator=_TEXT
    )
    """How it is given to ``--net``, such as ``tap:NAME``; by default the name alone."""
    parse_cli: Callable[[str], Mapping[str, Any]] = attrs.field(
        default=no_cli_options, validator=_CALLABLE
    )
    """From what stands behind the first colon in ``--net`` (empty without one) to options; raises
    `ConfigError`. By default nothing may stand there. The words that every card has (``,mac=``,
    ``,mtu=``, ``,queues=``, ``,rate=``) are taken out before, and doubled commas are single."""


@attrs.frozen(kw_only=True)
class ProvisionerFactory:
    """A provisioner on offer."""

    name: str = attrs.field(validator=_TEXT)
    """The same as the entry point's."""
    summary: str = attrs.field(validator=_TEXT)
    """One line, for lists."""
    create: Callable[[], Provisioner] = attrs.field(validator=_CALLABLE)


@attrs.frozen(kw_only=True)
class BootProtocol:
    """A way to put a kernel image into guest memory and to enter it.

    For backends that leave booting to core; the `microvm_boot_protocol` hook returns one.
    """

    name: str = attrs.field(validator=_TEXT)
    """The format's own name, such as ``elf``, ``bzimage`` or ``arm64-image``."""
    summary: str = attrs.field(validator=_TEXT)
    """One line, for logs."""
    load: Callable[[MachinePlan, GuestMemory], Mapping[str, RegisterValue]] = attrs.field(
        validator=_CALLABLE
    )
    """Writes kernel, initrd and command line into the memory, which holds nothing but zeros and
    no vCPU sees yet; returns the registers, by name, that the boot vCPU starts with: those that
    are not named stay as a reset leaves them. What the plan calls its command line is all of it.
    Raises `ImageError` for an image that is not what its head promised, or does not fit."""


@attrs.frozen(kw_only=True)
class GuestLayout:
    """What the `microvm_kernel_cmdline` hook may know of the guest's hardware."""

    arch: str = attrs.field(validator=_TEXT)
    """The architecture as the kernel calls it: ``x86_64``, ``aarch64``."""
    console: str | None = None
    """The console's name for ``console=`` (``ttyS0``, ``hvc0``), or None without one."""


_HOMES = {
    "PluginGroup": "microvm._discovery",
    "PluginRecord": "microvm._discovery",
    "PluginManager": "microvm._plugin_manager",
    "PluginState": "microvm._plugin_manager",
    "PluginStatus": "microvm._plugin_manager",
    "installed_plugins": "microvm._plugin_manager",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
