"""What `MachineConfig.backend_options` may say to this backend: nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microvm.config import ConfigProblem
from microvm.errors import ConfigError


def check_options(options: Mapping[str, Any]) -> None:
    """Check what the user gave.

    Raises:
        ConfigError: an option was given; lists all of them.
    """
    problems = [
        ConfigProblem(
            f"backend_options[{name!r}]", "is no option of the kvm backend.", "It has none."
        )
        for name in sorted(map(str, options))
    ]
    if problems:
        raise ConfigError("The kvm backend can't be used as asked for:", problems=problems)
