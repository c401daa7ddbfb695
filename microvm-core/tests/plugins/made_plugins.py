"""Plugins that a test makes, good and bad."""

import pytest

from microvm._discovery import PluginGroup
from microvm.abc import Capability, ProbeReport
from microvm.errors import (
    PluginLoadError,
)
from microvm.plugins import (
    BackendFactory,
    DeviceFactory,
    hookimpl,
)
from microvm.testing.plugins import plugin_manager


def device(name="dice", create=lambda options: None, **fields):
    return DeviceFactory(name=name, summary="A device", virtio_id=4, create=create, **fields)


def backend(name="paper", probe=None, **fields):
    return BackendFactory(
        name=name,
        summary="A backend",
        capabilities=frozenset({Capability.PAUSE}),
        probe=probe or (lambda options: ProbeReport(backend=name, usable=True, reason="It is.")),
        create=fields.pop("create", lambda options: None),
        **fields,
    )


class Registers:
    """A device plugin whose registration hook returns, or raises, what it is given."""

    def __init__(self, outcome):
        self.outcome = outcome

    @hookimpl
    def microvm_register_device(self):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def load_error(plugin, key="device/dice"):
    """The error of loading this plugin, and that it left no trace."""
    manager = plugin_manager(plugins={key: plugin})
    group, _, name = key.partition("/")
    with pytest.raises(PluginLoadError) as caught:
        manager.load(PluginGroup(group), name)
    assert manager._loader.pluggy.get_plugin(key) is None
    names = {
        impl.plugin_name
        for caller in vars(manager._loader.pluggy.hook).values()
        for impl in caller.get_hookimpls()
    }
    assert names == {"core"}
    return caught.value
