"""Phase two of the plugin system: one plugin imported, registered and looked over.

A plugin either passes whole or leaves no trace in the hook machinery. What it must keep:

* its entry point can be imported;
* it marks with `hookimpl` functions of known hooks, with known arguments, and forgets none;
* its functions are plain: no `async def`, and no wrapper, since hooks are called one by one;
* its registration hook, if it has any, is the one of its group and returns one record of that
  group's type under the entry point's name. Without any it brings hooks only.

pluggy is composed, not subclassed. Its `load_setuptools_entrypoints` is not used: one broken
distribution of three stops it, and nothing is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import pluggy

from microvm import _core_hooks, hookspecs
from microvm._discovery import PluginGroup, PluginRecord
from microvm._hook_calls import traced
from microvm._plugin_guard import Factory, describe, guarded, load_error
from microvm._plugin_hints import close_matches
from microvm.errors import PluginLoadError
from microvm.plugins import (
    PROJECT,
    BackendFactory,
    DeviceFactory,
    NetBackendFactory,
    ProvisionerFactory,
)

CORE = "core"
"""What core's own hooks are registered under."""

_TYPES: Mapping[PluginGroup, type[Factory]] = MappingProxyType(
    {
        PluginGroup.BACKEND: BackendFactory,
        PluginGroup.DEVICE: DeviceFactory,
        PluginGroup.NET_BACKEND: NetBackendFactory,
        PluginGroup.PROVISIONER: ProvisionerFactory,
    }
)
_REGISTRATION = MappingProxyType(
    {group: f"microvm_register_{group.value}" for group in PluginGroup}
)


@attrs.frozen(kw_only=True)
class LoadedPlugin:
    """A plugin in use."""

    record: PluginRecord
    factory: Factory | None
    """None for a plugin that brings hooks only."""
    hooks: tuple[str, ...]
    """The hooks it implements, registration aside."""

    @property
    def summary(self) -> str:
        """One line, for lists."""
        return self.factory.summary if self.factory is not None else "Hooks only."


def import_entry_point(record: PluginRecord) -> object:
    """Import what the record's entry point refers to."""
    from importlib_metadata import EntryPoint

    entry_point = EntryPoint(name=record.name, value=record.value, group=record.group.entry_points)
    return entry_point.load()


class PluginLoader:
    """Loads plugins into one pluggy manager. For one thread.

    Args:
        resolve: Turns a record into its plugin: a module, or any object with hook functions.
        traces: Whether to log each registration.
    """

    def __init__(
        self,
        resolve: Callable[[PluginRecord], object] = import_entry_point,
        *,
        traces: bool = False,
    ) -> None:
        self._resolve = resolve
        self._traces = traces
        self._collected: list[object] = []
        self.pluggy = pluggy.PluginManager(PROJECT)
        self.pluggy.add_hookspecs(hookspecs)
        for hook in _REGISTRATION.values():
            caller: pluggy.HookCaller = getattr(self.pluggy.hook, hook)
            caller.call_historic(result_callback=self._collected.append)
        self._known = frozenset(self.pluggy.hook.__dict__)
        self.pluggy.register(_core_hooks, name=CORE)

    def load(self, record: PluginRecord) -> LoadedPlugin:
        """Import and register the plugin.

        Raises:
            PluginLoadError: it can't be used; nothing of it stays registered.
        """
        try:
            plugin = self._resolve(record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            what = f"importing {record.value} raised {describe(error)}"
            raise load_error(record, what) from error
        try:
            return self._register(record, plugin)
        except (PluginLoadError, KeyboardInterrupt):
            raise
        except pluggy.PluginValidationError as error:
            raise load_error(record, " ".join(str(error).split()).rstrip(".")) from error
        except BaseException as error:
            raise load_error(record, f"registering it raised {describe(error)}") from error
        finally:
            self._collected.clear()

    def _register(self, record: PluginRecord, plugin: object) -> LoadedPlugin:
        holder = self.pluggy.get_name(plugin)
        if holder is not None:
            raise load_error(
                record,
                f"{record.value} is registered as {holder} already, and each name needs a "
                "module of its own",
            )
        hooks = sorted(self._marked_hooks(record, plugin))
        try:
            self._register_with_pluggy(record, plugin)
            self.pluggy.check_pending()
            registrations = [hook for hook in hooks if hook in _REGISTRATION.values()]
            return LoadedPlugin(
                record=record,
                factory=self._factory(record, registrations),
                hooks=tuple(hook for hook in hooks if hook not in registrations),
            )
        except BaseException:
            # pluggy keeps an implementation whose historic call raised, and what came before it.
            if self.pluggy.has_plugin(record.key):
                self.pluggy.unregister(name=record.key)
            raise

    def _register_with_pluggy(self, record: PluginRecord, plugin: object) -> None:
        def register() -> object:
            self.pluggy.register(plugin, name=record.key)
            return list(self._collected)

        (traced("register", record.key, {}, register) if self._traces else register)()

    def _marked_hooks(self, record: PluginRecord, plugin: object) -> Iterator[str]:
        """The hook of each implementation, each looked at before pluggy calls any of them."""
        found = False
        for name in dir(plugin):
            options = self.pluggy.parse_hookimpl_opts(plugin, name)
            if options is None:
                if name in self._known and callable(getattr(plugin, name)):
                    raise load_error(record, f"{name} is not marked with @hookimpl")
                continue
            found = True
            hook = options.get("specname") or name
            self._check_kind(record, name, getattr(plugin, name), options)
            if hook in self._known:
                yield hook
            elif not options.get("optionalhook"):
                near = close_matches(hook, self._known)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise load_error(record, f"there is no hook {hook}{hint}")
        if not found:
            raise load_error(record, f"{record.value} marks no function with @hookimpl")

    @staticmethod
    def _check_kind(
        record: PluginRecord, name: str, function: Callable[..., object], options: Mapping[str, Any]
    ) -> None:
        if options.get("wrapper") or options.get("hookwrapper"):
            raise load_error(
                record,
                f"{name} is a hook wrapper, and hooks are called one by one; tryfirst=True puts "
                "it before others",
            )
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise load_error(record, f"{name} is async, and hooks are synchronous")

    def _factory(self, record: PluginRecord, registrations: list[str]) -> Factory | None:
        wanted = _REGISTRATION[record.group]
        if not registrations:
            return None
        if registrations != [wanted]:
            raise load_error(
                record,
                f"it implements {' and '.join(registrations)}, and the group "
                f"{record.group.entry_points} takes {wanted} alone",
            )
        if len(self._collected) != 1:
            raise load_error(record, f"{wanted} returned nothing")
        factory = self._collected[0]
        expected = _TYPES[record.group]
        if not isinstance(factory, expected):
            raise load_error(
                record, f"{wanted} returned {type(factory).__name__}, not {expected.__name__}"
            )
        if factory.name != record.name:
            raise load_error(
                record,
                f"{wanted} returned a record named {factory.name!r}, and the entry point is "
                f"{record.name!r}",
            )
        return guarded(factory, record)
