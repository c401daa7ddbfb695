"""From options, as users write them, to a device's or a net backend's own configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import attrs

from microvm.config import ConfigProblem
from microvm.errors import ConfigError

C = TypeVar("C")


def config_of(kind: type[C], device: str, options: Mapping[str, Any]) -> C:
    """`kind`, an attrs class, made of the options that bear its fields' names.

    Args:
        kind: The class; it checks the values.
        device: What the device is called, for people.
        options: As the user wrote them.

    Raises:
        ConfigError: an option is unknown; or what `kind` raises.
    """
    known = [field.name for field in attrs.fields(kind)]  # type: ignore[arg-type]
    refuse(device, unknown_options(options, known))
    return kind(**options)


def unknown_options(options: Mapping[str, Any], known: Collection[str]) -> list[ConfigProblem]:
    """A problem for each option that is not known, by name."""
    remedy = f"It knows {', '.join(known)}." if known else "It has none."
    return [
        ConfigProblem(name, "is no option of it.", remedy)
        for name in sorted(options.keys() - set(known))
    ]


def refuse(device: str, problems: list[ConfigProblem]) -> None:
    """Raise a `ConfigError` with all of them, if there are any."""
    if problems:
        raise ConfigError(f"The {device} device can't be used as given:", problems=problems)
