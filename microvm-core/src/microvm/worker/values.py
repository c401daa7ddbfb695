"""What a worker tells of its machine: errors, outcomes, snapshots; to JSON and back. Pure.

The way back believes nothing. Types are checked, texts are cut and their control characters made
visible, lists are cut, and numbers stay numbers; what does not fit is a `WorkerProtocolError`. So
a message's size, bounded by its frame, bounds what becomes of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from microvm import errors
from microvm.config import ConfigProblem
from microvm.console import visible_lines
from microvm.errors import (
    BackendCrashed,
    ConfigError,
    HypervisorCallError,
    MicrovmError,
    WorkerProtocolError,
)
from microvm.outcome import MachineOutcome, OutcomeReason

if TYPE_CHECKING:
    from microvm.abc.device import Fact
    from microvm.metrics import DeviceCounters
    from microvm.worker.frames import Message

MAX_TEXT: Final = 4000
MAX_LINE: Final = 500
MAX_LINES: Final = 50
MAX_PROBLEM: Final = 1000
MAX_PROBLEMS: Final = 20
MAX_PLACES: Final = 1100
MAX_PLACE: Final = 60
MAX_PHASES: Final = 50
MAX_DEVICES: Final = 24
MAX_COUNTERS: Final = 24
MAX_COUNTER: Final = 32
MAX_FACTS: Final = 100
MAX_COUNT: Final = (1 << 64) - 1
"""Each message made of these, twelve bytes of JSON a character, stays below `MAX_FRAME_BYTES`."""

ERRORS: Final[Mapping[str, type[MicrovmError]]] = {
    value.code: value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, MicrovmError)
}
"""Code to class. A plugin's own class travels as the nearest of these that it is."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """What can be asked of a running machine without waiting for it."""

    console_tail: tuple[str, ...] = ()
    exit_counts: Mapping[str, int] = attrs.field(factory=dict, hash=False)
    console_counters: Mapping[str, int] = attrs.field(factory=dict, hash=False)
    device_counters: DeviceCounters = attrs.field(factory=dict, hash=False)


# --- in the worker ---------------------------------------------------------------------------


def error_to_json(error: BaseException) -> Message:
    """An error; one that is none of ours becomes a `BackendCrashed` with its name."""
    if not isinstance(error, MicrovmError):
        text = " ".join(str(error).split())
        name = type(error).__name__
        error = BackendCrashed(f"The worker process failed: {name}{text and ': '}{text}")
    kind = next(cls for cls in type(error).__mro__ if cls in ERRORS.values())
    assert issubclass(kind, MicrovmError)
    message: Message = {
        "code": kind.code,
        "message": error.message[:MAX_TEXT],
        "remedy": error.remedy and error.remedy[:MAX_TEXT],
        "console": _lines_to_json(error.console),
    }
    if isinstance(error, ConfigError):
        message["problems"] = [
            [p.where[:MAX_LINE], p.what[:MAX_PROBLEM], p.remedy and p.remedy[:MAX_PROBLEM]]
            for p in error.problems[:MAX_PROBLEMS]
        ]
    if isinstance(error, HypervisorCallError):
        message |= {"call": error.call[:MAX_LINE], "errno": error.errno}
    return message


def outcome_to_json(outcome: MachineOutcome) -> Message:
    """An outcome."""
    return {
        "reason": outcome.reason.value,
        "detail": outcome.detail[:MAX_TEXT],
        "console_tail": _lines_to_json(outcome.console_tail),
        "cpu_state": [line[:MAX_LINE] for line in outcome.cpu_state[:MAX_LINES]],
    }


def snapshot_to_json(snapshot: Snapshot) -> Message:
    """A snapshot."""
    counts = list(snapshot.exit_counts.items())[:MAX_PLACES]
    return {
        "console_tail": _lines_to_json(snapshot.console_tail),
        "exit_counts": {place[:MAX_PLACE]: count for place, count in counts},
        "console_counters": _counters_to_json(snapshot.console_counters),
        "device_counters": {
            name[:MAX_COUNTER]: _counters_to_json(counters)
            for name, counters in list(snapshot.device_counters.items())[:MAX_DEVICES]
        },
    }


def _counters_to_json(counters: Mapping[str, int]) -> Message:
    """A device of a stranger's may count anything."""
    return {
        name[:MAX_COUNTER]: min(max(int(count), -MAX_COUNT), MAX_COUNT)
        for name, count in list(counters.items())[:MAX_COUNTERS]
    }


def facts_to_json(facts: Mapping[str, Fact]) -> Message:
    """What a device answered to a command.

    Raises:
        TypeError: the device answered with something else.
    """
    return {
        name[:MAX_PLACE]: fact[:MAX_LINE] if isinstance(fact, str) else _simple(fact)
        for name, fact in list(facts.items())[:MAX_FACTS]
    }


def _simple(fact: object) -> Fact:
    if fact is None or isinstance(fact, (bool, int, float)):
        return fact
    raise TypeError(f"a device answers in numbers and texts, not {type(fact).__name__}")


def _lines_to_json(lines: Sequence[str]) -> list[str]:
    """The last of them."""
    return [line[:MAX_LINE] for line in lines[-MAX_LINES:]]


# --- in the caller's process -----------------------------------------------------------------


def wrong(what: str) -> WorkerProtocolError:
    """The error for a message that is not as it should be."""
    return WorkerProtocolError(f"The worker process sent {what}.")


def error_from_json(value: object) -> MicrovmError:
    """The error, of the class that its code names.

    Raises:
        WorkerProtocolError: it is not one.
    """
    message = _mapping(value, "an error")
    kind = ERRORS.get(text(message.get("code"), MAX_LINE))
    if kind is None:
        raise wrong("an error of no kind that is known")
    words = text(message.get("message"), MAX_TEXT)
    remedy = _optional_text(message.get("remedy"))
    if issubclass(kind, HypervisorCallError):
        call, number = text(message.get("call"), MAX_LINE), _number(message.get("errno"))
        return kind(call, number % (1 << 31), remedy=remedy)
    error = kind(words, remedy=remedy)
    error.console = lines(message.get("console"))
    if isinstance(error, ConfigError):
        error.problems = tuple(map(_problem, _list(message.get("problems"))[:MAX_PROBLEMS]))
    return error


def _problem(value: object) -> ConfigProblem:
    match value:
        case [where, what, remedy]:
            return ConfigProblem(
                text(where, MAX_LINE), text(what, MAX_TEXT), _optional_text(remedy)
            )
    raise wrong("a problem that is none")


def outcome_from_json(value: object) -> MachineOutcome:
    """The outcome.

    Raises:
        WorkerProtocolError: it is not one.
    """
    message = _mapping(value, "an outcome")
    try:
        reason = OutcomeReason(text(message.get("reason"), MAX_LINE))
    except ValueError:
        raise wrong("an outcome of no kind that is known") from None
    return MachineOutcome(
        reason=reason,
        detail=text(message.get("detail"), MAX_TEXT),
        console_tail=lines(message.get("console_tail")),
        cpu_state=lines(message.get("cpu_state")),
    )


def snapshot_from_json(value: object) -> Snapshot:
    """The snapshot.

    Raises:
        WorkerProtocolError: it is not one.
    """
    message = _mapping(value, "a snapshot")
    counts = _mapping(message.get("exit_counts"), "counts")
    devices = _mapping(message.get("device_counters"), "devices")
    return Snapshot(
        console_tail=lines(message.get("console_tail")),
        exit_counts={
            text(place, MAX_PLACE): _number(count)
            for place, count in list(counts.items())[:MAX_PLACES]
        },
        console_counters=_counters(message.get("console_counters")),
        device_counters={
            text(name, MAX_COUNTER): _counters(counters)
            for name, counters in list(devices.items())[:MAX_DEVICES]
        },
    )


def _counters(value: object) -> dict[str, int]:
    counters = list(_mapping(value, "counters").items())[:MAX_COUNTERS]
    return {text(name, MAX_COUNTER): _number(count) for name, count in counters}


def marks_from_json(value: object) -> list[tuple[str, int]]:
    """Phases of a boot, and when each ended.

    Raises:
        WorkerProtocolError: they are not.
    """
    marks: list[tuple[str, int]] = []
    for mark in _list(value)[:MAX_PHASES]:
        match mark:
            case [phase, at_ns]:
                marks.append((text(phase, MAX_PLACE), _number(at_ns)))
            case _:
                raise wrong("a phase that is none")
    return marks


def facts_from_json(value: object) -> dict[str, Fact]:
    """What a device answered to a command.

    Raises:
        WorkerProtocolError: it is not that.
    """
    facts = list(_mapping(value, "an answer to a command").items())[:MAX_FACTS]
    return {text(name, MAX_PLACE): _fact(fact) for name, fact in facts}


def _fact(value: object) -> Fact:
    match value:
        case None | bool() | int() | float():
            return value
        case _:
            return text(value, MAX_LINE)


def text(value: object, limit: int) -> str:
    """A text, cut, in visible characters and line breaks only."""
    if not isinstance(value, str):
        raise wrong("something else in place of a text")
    return visible_lines(value[:limit])


def lines(value: object) -> tuple[str, ...]:
    """Lines of text, each cut, the last of them."""
    return tuple(text(line, MAX_LINE).replace("\n", " ") for line in _list(value)[-MAX_LINES:])


def _optional_text(value: object) -> str | None:
    return None if value is None else text(value, MAX_TEXT)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise wrong("something else in place of a list")
    return value


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong(f"something else in place of {what}")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong("something else in place of a number")
    return value
