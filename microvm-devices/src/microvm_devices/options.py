"""From a `DeviceConfig`'s options to a device's own configuration."""

from __future__ import annotations

from collections.abc import Mapping
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
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"The {device} device can't be used as given:",
            problems=[
                ConfigProblem(name, "is no option of it.", f"It knows {', '.join(known)}.")
                for name in unknown
            ],
        )
    return kind(**options)


def refuse(device: str, problems: list[ConfigProblem]) -> None:
    """Raise a `ConfigError` with all of them, if there are any."""
    if problems:
        raise ConfigError(f"The {device} device can't be used as given:", problems=problems)
