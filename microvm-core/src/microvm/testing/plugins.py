"""A plugin manager of given plugins, for tests: nothing installed, no environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from microvm._discovery import Discovery, PluginGroup, PluginRecord, Switches
from microvm._plugin_manager import PluginManager
from microvm.plugins import (
    BackendFactory,
    DeviceFactory,
    NetBackendFactory,
    ProvisionerFactory,
    hookimpl,
)

if TYPE_CHECKING:
    from microvm._plugin_guard import Factory


class _BackendPlugin:
    """The plugin that a module with one registration hook would be."""

    def __init__(self, factory: BackendFactory) -> None:
        self._factory = factory

    @hookimpl
    def microvm_register_backend(self) -> BackendFactory:
        return self._factory


class _DevicePlugin:
    def __init__(self, factory: DeviceFactory) -> None:
        self._factory = factory

    @hookimpl
    def microvm_register_device(self) -> DeviceFactory:
        return self._factory


class _NetBackendPlugin:
    def __init__(self, factory: NetBackendFactory) -> None:
        self._factory = factory

    @hookimpl
    def microvm_register_net_backend(self) -> NetBackendFactory:
        return self._factory


class _ProvisionerPlugin:
    def __init__(self, factory: ProvisionerFactory) -> None:
        self._factory = factory

    @hookimpl
    def microvm_register_provisioner(self) -> ProvisionerFactory:
        return self._factory


def plugin_manager(
    *factories: Factory,
    plugins: Mapping[str, object] | None = None,
    switches: Switches | None = None,
) -> PluginManager:
    """A manager that finds these plugins and no others.

    Args:
        factories: Records to offer, each as a plugin of its own.
        plugins: ``group/name`` to a module, or any object with functions marked `hookimpl`; an
            exception stands for a module that raises it when imported.
        switches: The environment's say; the default is none.

    Example:
        manager = plugin_manager(my_backend_factory, plugins={"device/dice": microvm_dice.plugin})
        async with Machine(config, plugins=manager) as machine: ...
    """
    given: dict[str, object] = dict(plugins or {})
    for factory in factories:
        match factory:
            case BackendFactory():
                given[f"{PluginGroup.BACKEND}/{factory.name}"] = _BackendPlugin(factory)
            case DeviceFactory():
                given[f"{PluginGroup.DEVICE}/{factory.name}"] = _DevicePlugin(factory)
            case NetBackendFactory():
                given[f"{PluginGroup.NET_BACKEND}/{factory.name}"] = _NetBackendPlugin(factory)
            case ProvisionerFactory():
                given[f"{PluginGroup.PROVISIONER}/{factory.name}"] = _ProvisionerPlugin(factory)

    def resolve(record: PluginRecord) -> object:
        plugin = given[record.key]
        if isinstance(plugin, BaseException):
            raise plugin
        return plugin

    records = [_record(key) for key in given]
    return PluginManager(Discovery(records=tuple(records)), switches=switches, resolve=resolve)


def _record(key: str) -> PluginRecord:
    group, _, name = key.partition("/")
    return PluginRecord(group=PluginGroup(group), name=name, value=f"given.{name}")
