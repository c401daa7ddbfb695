"""Reading the options of a net backend: what all of ours share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from microvm.config import ConfigProblem
from microvm.errors import ConfigError
from microvm_devices.options import unknown_options


def check_names(what: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that are not known.

    Raises:
        ConfigError: there are some; all of them.
    """
    problems = unknown_options(options, known)
    if problems:
        raise ConfigError(f"The net backend {what} can't be used as given:", problems=problems)


def wrong(what: str, name: str, problem: str, remedy: str | None = None) -> ConfigError:
    """The error for one option."""
    return ConfigError(
        f"The net backend {what} can't be used as given:",
        problems=[ConfigProblem(name, problem, remedy)],
    )
