"""Reading the options of a net backend: what all of ours share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from microvm.config import ConfigProblem
from microvm.errors import ConfigError


def check_names(what: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that are not known.

    Raises:
        ConfigError: there are some; all of them.
    """
    unknown = sorted(set(options) - set(known))
    if not unknown:
        return
    remedy = f"It knows {', '.join(known)}." if known else "It has none."
    raise ConfigError(
        f"The net backend {what} can't be used as given:",
        problems=[ConfigProblem(name, "is no option of it.", remedy) for name in unknown],
    )


def wrong(what: str, name: str, problem: str, remedy: str | None = None) -> ConfigError:
    """The error for one option."""
    return ConfigError(
        f"The net backend {what} can't be used as given:",
        problems=[ConfigProblem(name, problem, remedy)],
    )
