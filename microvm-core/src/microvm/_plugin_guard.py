"""Where a plugin's code is called: whatever it raises becomes an error with the plugin's name.

Also a `SystemExit`, or any other BaseException but `KeyboardInterrupt`: a plugin has no say over
the program's life. Plugins run synchronously, so trio's `Cancelled` can't come this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from microvm._discovery import DISABLE, PluginRecord
from microvm.abc import ProbeReport
from microvm.errors import MicrovmError, PluginLoadError
from microvm.plugins import BackendFactory, DeviceFactory, ProvisionerFactory

Factory = BackendFactory | DeviceFactory | ProvisionerFactory
R = TypeVar("R")

MAX_CAUSE_CHARS = 300
"""A plugin's own words in our sentence; the traceback has the rest."""


class WrongAnswer(Exception):
    """What a hook returned is not what it may return; the text completes "it returned"."""


def describe(error: BaseException) -> str:
    """An exception as one short line. Its `__str__` is the plugin's code too, and may raise."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message can't be read)"
    name = type(error).__name__
    line = f"{name}: {text}" if text else name
    return line if len(line) <= MAX_CAUSE_CHARS else line[: MAX_CAUSE_CHARS - 1] + "…"


def load_error(record: PluginRecord, what: str) -> PluginLoadError:
    """The error for a plugin at fault: who, what, and how to go on without it."""
    return PluginLoadError(f"{_who(record)}{what}.", remedy=_remedy(record))


def reason(error: MicrovmError, record: PluginRecord) -> str:
    """What is wrong alone, for a list that has the rest in columns."""
    return error.message.removeprefix(_who(record))


def _who(record: PluginRecord) -> str:
    return f"Plugin {record.key} of {record.origin} can't be used: "


def _remedy(record: PluginRecord) -> str:
    if not record.dist:
        return "It was given in code, not by an installed distribution: repair it there."
    return f"Update or uninstall {record.dist}, or go without it: {DISABLE}={record.key}"


def call(record: PluginRecord, what: str, function: Callable[[], R]) -> R:
    """Call a plugin's code.

    Raises:
        MicrovmError, WrongAnswer: as raised.
        PluginLoadError: it raised anything else; `what` says where, as in ``its create``.
    """
    try:
        return function()
    except (MicrovmError, WrongAnswer, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise load_error(record, f"{what} raised {describe(error)}") from error


@attrs.frozen
class _Create:
    """A factory's `create` that raises typed errors only."""

    record: PluginRecord
    create: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return call(self.record, "its create", lambda: self.create(*args))


@attrs.frozen
class _Probe:
    """A backend's `probe` held to its contract: it never raises and answers with a report."""

    record: PluginRecord
    probe: Callable[[Mapping[str, Any]], ProbeReport]

    def __call__(self, options: Mapping[str, Any]) -> ProbeReport:
        try:
            report: object = self.probe(options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._broken(f"Its probe raised {describe(error)}.")
        if not isinstance(report, ProbeReport):
            return self._broken(f"Its probe answered with {type(report).__name__}.")
        if report.backend != self.record.name:
            return self._broken(f"Its probe reported on {report.backend!r}.")
        return report

    def _broken(self, reason: str) -> ProbeReport:
        return ProbeReport(
            backend=self.record.name, usable=False, reason=reason, remedy=_remedy(self.record)
        )


def guarded(factory: Factory, record: PluginRecord) -> Factory:
    """The same factory, its callables guarded."""
    create = _Create(record, factory.create)
    match factory:
        case BackendFactory():
            return attrs.evolve(factory, create=create, probe=_Probe(record, factory.probe))
        case DeviceFactory():
            return attrs.evolve(factory, create=create)
        case ProvisionerFactory():
            return attrs.evolve(factory, create=create)
