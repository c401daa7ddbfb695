"""Where a plugin's code is called: whatever it raises becomes an error with the plugin's name.

Also a `SystemExit`, or any other BaseException but `KeyboardInterrupt`: a plugin has no say over
the program's life. Plugins run synchronously, so trio's `Cancelled` can't come this way.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import attrs

from microvm._discovery import DISABLE, PluginRecord
from microvm.abc import (
    HostedPlatform,
    Hypervisor,
    NetBackend,
    ProbeReport,
    Provisioner,
    VirtioDevice,
)
from microvm.errors import MicrovmError, PluginLoadError
from microvm.plugins import (
    BackendFactory,
    DeviceFactory,
    NetBackendFactory,
    ProvisionerFactory,
)

Factory = BackendFactory | DeviceFactory | NetBackendFactory | ProvisionerFactory
R = TypeVar("R")

MAX_CAUSE_CHARS = 300
"""A plugin's own words in our sentence; the traceback has the rest."""

SHORT = reprlib.Repr()
SHORT.maxother = SHORT.maxstring = MAX_CAUSE_CHARS
"""Shows a plugin's objects in our sentences; a `__repr__` that raises does no harm."""


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


def _create(
    record: PluginRecord,
    kinds: tuple[type[object], ...],
    create: Callable[..., object],
    *options: object,
) -> Any:
    """A factory's `create` that raises typed errors only, and gives what it has to."""
    made = call(record, "its create", lambda: create(*options))
    if not isinstance(made, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise load_error(record, f"its create gave {SHORT.repr(made)}, not a {wanted}")
    return made


def _probe(
    record: PluginRecord,
    probe: Callable[[Mapping[str, Any]], ProbeReport],
    options: Mapping[str, Any],
) -> ProbeReport:
    """A backend's `probe` held to its contract: it never raises and answers with a report."""
    try:
        report: object = probe(options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        wrong = f"Its probe raised {describe(error)}."
    else:
        if isinstance(report, ProbeReport) and report.backend == record.name:
            return report
        wrong = f"Its probe answered with {SHORT.repr(report)}."
    return ProbeReport(backend=record.name, usable=False, reason=wrong, remedy=_remedy(record))


def _parse_cli(
    record: PluginRecord, parse_cli: Callable[[str], Mapping[str, Any]], text: str
) -> Mapping[str, Any]:
    """A net backend's `parse_cli` that raises typed errors only, and gives options."""
    options: object = call(record, "its parse_cli", lambda: parse_cli(text))
    if not isinstance(options, Mapping):
        raise load_error(record, f"its parse_cli gave {SHORT.repr(options)}, not options")
    return options


def guarded(factory: Factory, record: PluginRecord) -> Factory:
    """The same factory, its callables guarded."""
    match factory:
        case BackendFactory(create=create, probe=probe):
            return attrs.evolve(
                factory,
                create=partial(_create, record, (HostedPlatform, Hypervisor), create),
                probe=partial(_probe, record, probe),
            )
        case DeviceFactory(create=create):
            return attrs.evolve(factory, create=partial(_create, record, (VirtioDevice,), create))
        case NetBackendFactory(create=create, parse_cli=parse_cli):
            return attrs.evolve(
                factory,
                create=partial(_create, record, (NetBackend,), create),
                parse_cli=partial(_parse_cli, record, parse_cli),
            )
        case ProvisionerFactory(create=create):
            return attrs.evolve(factory, create=partial(_create, record, (Provisioner,), create))
