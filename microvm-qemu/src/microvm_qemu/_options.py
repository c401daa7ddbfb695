"""What `MachineConfig.backend_options` may say to this backend. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from microvm.config import ConfigProblem
from microvm.errors import ConfigError

Accelerator = Literal["tcg", "kvm"]

DEFAULT_PROGRAM: Final = "qemu-system-x86_64"

ACCELERATORS: Final[tuple[Accelerator, ...]] = ("tcg", "kvm")

KNOWN: Final = ("accel", "program", "extra_args")


@attrs.frozen(kw_only=True)
class QemuOptions:
    """The options, checked."""

    accel: Accelerator = "tcg"
    """``tcg`` runs guest code in software anywhere; ``kvm`` on the CPU itself. The one that is
    asked for is used or an error says why not: there is no falling back."""
    program: str = DEFAULT_PROGRAM
    """A path, or a name to look up on PATH."""
    extra_args: tuple[str, ...] = ()
    """Put behind our own arguments, unread. For experiments: they can undo any promise."""


def parse_options(options: Mapping[str, Any]) -> QemuOptions:
    """Check what the user gave.

    Raises:
        ConfigError: an option is unknown or its value is of the wrong kind; lists all of them.
    """
    problems = [
        ConfigProblem(
            f"backend_options[{name!r}]",
            "is no option of the qemu backend.",
            f"It knows {', '.join(KNOWN)}.",
        )
        for name in sorted(map(str, options.keys() - set(KNOWN)))
    ]
    accel = options.get("accel", "tcg")
    if accel not in ACCELERATORS:
        problems.append(_wrong("accel", f"must be one of {', '.join(ACCELERATORS)}", accel))
    program = options.get("program", DEFAULT_PROGRAM)
    if not isinstance(program, str | os.PathLike) or not _is_argument(os.fspath(program)):
        problems.append(_wrong("program", "must be a path or a program's name", program))
    elif not os.fspath(program):
        problems.append(_wrong("program", "must not be empty", program))
    extra = options.get("extra_args", ())
    if not isinstance(extra, Sequence) or isinstance(extra, str | bytes):
        problems.append(_wrong("extra_args", "must be a sequence of strings", extra))
    elif not all(map(_is_argument, extra)):
        problems.append(_wrong("extra_args", "must hold strings without NUL characters", extra))
    if problems:
        raise ConfigError("The qemu backend can't be used as asked for:", problems=problems)
    return QemuOptions(accel=accel, program=os.fspath(program), extra_args=tuple(extra))


def _is_argument(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _wrong(name: str, rule: str, value: object) -> ConfigProblem:
    return ConfigProblem(f"backend_options[{name!r}]", f"{rule}, not {value!r}.")
