"""What `MachineConfig.backend_options` may say to this backend. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from microvm.config import ConfigProblem
from microvm.errors import ConfigError


@attrs.frozen(kw_only=True)
class KvmOptions:
    """The backend's options."""

    small_guests: bool = False
    """Be content with a KVM that runs small guests only, by emulating them: for tests of devices
    and for guests of a few hundred bytes. No kernel boots on it."""


def parse_options(options: Mapping[str, Any]) -> KvmOptions:
    """Check what the user gave.

    Raises:
        ConfigError: an option is unknown, or its value can't be used; lists all of them.
    """
    known = attrs.fields_dict(KvmOptions)
    problems = [
        ConfigProblem(
            f"backend_options[{name!r}]",
            "is no option of the kvm backend.",
            f"It has {', '.join(known)}.",
        )
        for name in sorted(map(str, set(options) - set(known)))
    ]
    small_guests = options.get("small_guests", False)
    if not isinstance(small_guests, bool):
        problems.append(
            ConfigProblem(
                "backend_options['small_guests']", f"must be True or False, not {small_guests!r}."
            )
        )
    if problems:
        raise ConfigError("The kvm backend can't be used as asked for:", problems=problems)
    return KvmOptions(small_guests=small_guests)
