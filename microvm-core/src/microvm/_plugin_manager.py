"""The plugin manager: what core asks for components, and what it calls hooks through.

The rule of which plugins have a say: installed is active. A component is loaded when it is asked
for by name, and then any fault of it is an error. Before the first hook is called everything else
that is installed is loaded too, so that a plugin's hooks work whether or not the machine uses its
component; there a fault costs one warning, and the rest go on (`MICROVM_STRICT_PLUGINS=1` makes
it an error). A plugin that brings hooks and no component is published in any of the groups.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from microvm import _plugin_hints
from microvm._discovery import (
    DISABLE,
    Discovery,
    PluginGroup,
    PluginRecord,
    Switches,
    discover,
    installed_distributions,
)
from microvm._hook_calls import HookCalls, trace_to_stderr
from microvm._plugin_guard import SHORT, Factory, WrongAnswer, reason
from microvm._plugin_loader import LoadedPlugin, PluginLoader, import_entry_point
from microvm.boot.reading import HEAD_BYTES
from microvm.config import ConfigProblem
from microvm.errors import PluginConflict, PluginError, PluginLoadError
from microvm.plugins import (
    BackendFactory,
    BootProtocol,
    DeviceFactory,
    GuestLayout,
    NetBackendFactory,
    ProvisionerFactory,
)

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.abc import Guest, ProbeReport
    from microvm.config import MachineConfig
    from microvm.outcome import MachineOutcome

log = logging.getLogger("microvm.plugins")
F = TypeVar("F", BackendFactory, DeviceFactory, NetBackendFactory, ProvisionerFactory)


class PluginState(enum.StrEnum):
    """What can be said of a plugin."""

    OK = "ok"
    DISABLED = "disabled"
    BROKEN = "broken"
    CONFLICT = "conflict"


@attrs.frozen(kw_only=True)
class PluginStatus:
    """A plugin and how it fares, for lists."""

    record: PluginRecord
    state: PluginState
    detail: str
    """Its summary, or what is wrong with it."""
    hooks: tuple[str, ...] = ()
    """The hooks it implements, registration aside."""


class PluginManager:
    """The plugins of a process, or those that a test gives. For the trio thread.

    Every `load...` method and every hook method may raise:
        PluginMissing: no plugin of that name; says what to install.
        PluginLoadError: the plugin is broken; names its distribution and how to go without it.
        PluginConflict: two distributions provide that name.

    Args:
        found: What there is to load.
        switches: The environment's say.
        resolve: Turns a record into its plugin; the default imports its entry point.
    """

    def __init__(
        self,
        found: Discovery,
        *,
        switches: Switches | None = None,
        resolve: Callable[[PluginRecord], object] = import_entry_point,
    ) -> None:
        self._switches = switches if switches is not None else Switches()
        self._records: dict[str, PluginRecord] = {}
        traces = self._switches.trace_hooks
        if traces:
            trace_to_stderr()
        self._loader = PluginLoader(resolve, traces=traces)
        self._hooks = HookCalls(self._loader.pluggy, self._records, traces=traces)
        self._found = found
        self._disabled = tuple(r for r in found.records if self._switches.disables(r))
        self._by_key: dict[str, list[PluginRecord]] = {}
        for record in found.records:
            if record not in self._disabled:
                self._by_key.setdefault(record.key, []).append(record)
        self._loaded: dict[str, LoadedPlugin] = {}
        self._faults: dict[str, PluginError] = {}
        self._active = False
        self._tell_of_discovery()

    def _tell_of_discovery(self) -> None:
        if self._disabled:
            names = ", ".join(f"{r.key} of {r.origin}" for r in self._disabled)
            log.warning("%s switches off %s.", DISABLE, names)
        for token in self._switches.unmatched(self._found.records):
            log.warning("%s names %r, and no plugin installed answers to it.", DISABLE, token)
        for problem in self._found.problems:
            if self._switches.strict:
                raise PluginLoadError(problem, remedy="Reinstall that distribution.")
            log.warning("%s", problem)

    # --- components ----------------------------------------------------------------------

    def discover(self) -> tuple[PluginRecord, ...]:
        """Every plugin installed, also those switched off, by group and name."""
        return self._found.records

    def load(self, group: PluginGroup, name: str) -> Factory:
        """The component of that name, its plugin loaded now if it was not."""
        plugin = self._load(f"{group}/{name}", group, name)
        if plugin.factory is None:
            raise PluginError(
                f"Plugin {plugin.record.key} of {plugin.record.origin} brings hooks only.",
                remedy=f"It is active as it is; choose another {group.words}.",
            )
        return plugin.factory

    def load_backend(self, name: str) -> BackendFactory:
        """The backend of that name."""
        return _typed(self.load(PluginGroup.BACKEND, name), BackendFactory)

    def load_device(self, name: str) -> DeviceFactory:
        """The device of that name."""
        return _typed(self.load(PluginGroup.DEVICE, name), DeviceFactory)

    def load_net_backend(self, name: str) -> NetBackendFactory:
        """The net backend of that name."""
        return _typed(self.load(PluginGroup.NET_BACKEND, name), NetBackendFactory)

    def load_net_backends(self) -> tuple[NetBackendFactory, ...]:
        """Every net backend that can be loaded, by name: what ``--net`` takes."""
        return tuple(_typed(f, NetBackendFactory) for f in self.load_all(PluginGroup.NET_BACKEND))

    def load_provisioner(self, name: str) -> ProvisionerFactory:
        """The provisioner of that name."""
        return _typed(self.load(PluginGroup.PROVISIONER, name), ProvisionerFactory)

    def load_backends(self) -> tuple[BackendFactory, ...]:
        """Every backend that can be loaded, by preference and name: the order of choice."""
        backends = (_typed(f, BackendFactory) for f in self.load_all(PluginGroup.BACKEND))
        return tuple(sorted(backends, key=lambda backend: (backend.preference, backend.name)))

    def load_all(self, group: PluginGroup) -> tuple[Factory, ...]:
        """Every component of the group that can be loaded, by name.

        A plugin that can't is logged, once, and left out; under `MICROVM_STRICT_PLUGINS` it
        raises.
        """
        plugins = [
            plugin
            for key, records in self._by_key.items()
            if records[0].group is group and (plugin := self._load_or_warn(key)) is not None
        ]
        return tuple(plugin.factory for plugin in plugins if plugin.factory is not None)

    def examine(self) -> tuple[PluginStatus, ...]:
        """How every plugin fares. Loads them all; logs nothing and raises nothing."""
        return tuple(self._status(record) for record in self._found.records)

    def _status(self, record: PluginRecord) -> PluginStatus:
        if record in self._disabled:
            detail = f"Switched off by {DISABLE}."
            return PluginStatus(record=record, state=PluginState.DISABLED, detail=detail)
        try:
            plugin = self._load(record.key, record.group, record.name)
        except PluginConflict as error:
            return PluginStatus(record=record, state=PluginState.CONFLICT, detail=error.message)
        except PluginError as error:
            detail = reason(error, record)
            return PluginStatus(record=record, state=PluginState.BROKEN, detail=detail)
        return PluginStatus(
            record=record, state=PluginState.OK, detail=plugin.summary, hooks=plugin.hooks
        )

    def _load_or_warn(self, key: str) -> LoadedPlugin | None:
        known = key in self._faults
        record = self._by_key[key][0]
        try:
            return self._load(key, record.group, record.name)
        except PluginError as error:
            if self._switches.strict:
                raise
            if not known:
                log.warning("%s", " ".join(str(error).split("\n")))
                log.debug("Traceback of plugin %s", key, exc_info=error.__cause__)
            return None

    def _load(self, key: str, group: PluginGroup, name: str) -> LoadedPlugin:
        if key in self._loaded:
            return self._loaded[key]
        if key in self._faults:
            fault = self._faults[key]
            raise type(fault)(fault.message, remedy=fault.remedy) from fault.__cause__
        records = self._by_key.get(key, [])
        if not records:
            for record in self._disabled:
                if record.key == key:
                    raise _plugin_hints.disabled(record)
            raise _plugin_hints.missing(group, name, self._found.records)
        try:
            if len(records) > 1:
                raise _plugin_hints.conflict(records)
            plugin = self._loader.load(records[0])
        except PluginError as error:
            self._faults[key] = error
            raise
        self._records[key] = plugin.record
        self._loaded[key] = plugin
        return plugin

    # --- hooks ---------------------------------------------------------------------------

    def activate(self) -> None:
        """Load everything installed, so that its hooks are called. The hook methods do it."""
        if not self._active:
            for key in self._by_key:
                self._load_or_warn(key)
            self._active = True

    def select_backend(self, config: MachineConfig, reports: Sequence[ProbeReport]) -> str | None:
        """Call `microvm_select_backend`: the name of a usable backend, or None if there is none.

        Args:
            config: The machine, its `backend` None.
            reports: In the order of `load_backends`.
        """
        usable = [report.backend for report in reports if report.usable]

        def read(answer: Any) -> str:
            if not isinstance(answer, str) or answer not in usable:
                names = ", ".join(usable) or "none"
                raise WrongAnswer(
                    f"{SHORT.repr(answer)}, which is not a usable backend (those are: {names})"
                )
            return answer

        self.activate()
        answers = self._hooks.strict(
            "microvm_select_backend", read, config=config, reports=tuple(reports)
        )
        return next(answers, None)

    def boot_protocol(self, head: bytes, arch: str) -> BootProtocol | None:
        """Call `microvm_boot_protocol`: the protocol for a kernel image, or None if unknown.

        Args:
            head: The beginning of the image (`microvm.boot.files.kernel_head`), untrusted; hooks
                see its first 4096 bytes.
            arch: ``x86_64`` or ``aarch64``.
        """
        self.activate()
        answers = self._hooks.strict(
            "microvm_boot_protocol", _read_protocol, head=head[:HEAD_BYTES], arch=arch
        )
        return next(answers, None)

    def check_config(self, config: MachineConfig, backend: str) -> list[ConfigProblem]:
        """Call `microvm_check_config`: every plugin's problems with the machine."""
        self.activate()
        answers = self._hooks.isolated(
            "microvm_check_config", _read_problems, config=config, backend=backend
        )
        return [problem for problems in answers for problem in problems]

    def kernel_cmdline(self, config: MachineConfig, layout: GuestLayout | None = None) -> list[str]:
        """Call `microvm_kernel_cmdline`: every plugin's words.

        Args:
            config: The machine.
            layout: The guest's hardware; None for the host's architecture without a console.
        """
        self.activate()
        layout = layout if layout is not None else GuestLayout(arch=_host_arch())
        answers = self._hooks.strict(
            "microvm_kernel_cmdline", _read_words, config=config, layout=layout
        )
        return [word for words in answers for word in words]

    def notify_machine_started(self, machine: Machine) -> None:
        """Call `microvm_machine_started`. Never raises for a plugin's fault."""
        self._notify("microvm_machine_started", machine=machine)

    def notify_guest_ready(self, machine: Machine, guest: Guest | None) -> None:
        """Call `microvm_guest_ready`. Never raises for a plugin's fault."""
        self._notify("microvm_guest_ready", machine=machine, guest=guest)

    def notify_machine_stopped(self, machine: Machine, outcome: MachineOutcome) -> None:
        """Call `microvm_machine_stopped`. Never raises for a plugin's fault."""
        self._notify("microvm_machine_stopped", machine=machine, outcome=outcome)

    def _notify(self, hook: str, **arguments: object) -> None:
        # Every plugin is active by now: no machine starts before its configuration was checked.
        for _ in self._hooks.isolated(hook, lambda answer: answer, **arguments):
            pass


@functools.cache
def installed_plugins() -> PluginManager:
    """The plugins installed in this environment, steered by its variables; one for the process.

    Raises:
        PluginLoadError: a distribution's metadata can't be read, under `MICROVM_STRICT_PLUGINS`.
    """
    return PluginManager(
        discover(installed_distributions()), switches=Switches.from_environment(os.environ)
    )


def _typed(factory: Factory, kind: type[F]) -> F:
    assert isinstance(factory, kind)  # the loader has checked it
    return factory


def _read_protocol(answer: Any) -> BootProtocol:
    if not isinstance(answer, BootProtocol):
        raise WrongAnswer(f"{SHORT.repr(answer)}, which is not a BootProtocol")
    return answer


def _read_problems(answer: Any) -> list[ConfigProblem]:
    return _read_items(answer, lambda item: isinstance(item, ConfigProblem), "a ConfigProblem")


def _read_words(answer: Any) -> list[str]:
    def is_word(item: Any) -> bool:
        return isinstance(item, str) and item.isascii() and item.isprintable() and " " not in item

    return _read_items(answer, is_word, "a word of printable ASCII")


def _read_items(answer: Any, good: Callable[[Any], bool], what: str) -> list[Any]:
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise WrongAnswer(f"{SHORT.repr(answer)}, which is not a list")
    items = list(answer)
    for item in items:
        if not good(item):
            raise WrongAnswer(f"{SHORT.repr(item)}, which is not {what}")
    return items


def _host_arch() -> str:
    """This machine as the kernel calls it; Windows and macOS have names of their own."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
