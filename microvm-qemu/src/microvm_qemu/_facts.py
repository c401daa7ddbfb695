"""What was found out about a QEMU, and what it means for us. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

Version = tuple[int, int, int]

MIN_VERSION: Final[Version] = (7, 2, 0)
"""The oldest that this code has run on. 6.2 and older have what we ask for by their help texts,
but nobody has looked whether their vhost-user does what our devices expect."""

INSTALL: Final = "On Debian and Ubuntu: apt-get install qemu-system-x86"

MACHINE: Final = "microvm"
MEMORY_OBJECT: Final = "memory-backend-memfd"
CHANNEL_DEVICE: Final = "vhost-user-vsock-device"


@attrs.frozen(kw_only=True)
class QemuFacts:
    """One QEMU program's answers."""

    version: Version
    has_machine: bool
    has_memfd: bool
    sandbox: bool
    """Built with seccomp: ``-sandbox`` works."""
    devices: frozenset[str]
    """The front ends that we could use; see `FRONT_ENDS`."""
    accelerators: frozenset[str]

    @property
    def version_text(self) -> str:
        """As ``7.2.22``."""
        return ".".join(map(str, self.version))

    def to_json(self) -> dict[str, Any]:
        """For the cache."""
        return attrs.asdict(
            self, value_serializer=lambda _, __, v: sorted(v) if isinstance(v, frozenset) else v
        )

    @classmethod
    def from_json(cls, stored: Any) -> QemuFacts:
        """Back from the cache.

        Raises:
            ValueError: that is not what `to_json` made.
        """
        if not isinstance(stored, Mapping):
            raise ValueError("not an object")
        flags = {name: stored.get(name) for name in ("has_machine", "has_memfd", "sandbox")}
        version = stored.get("version")
        names = {name: stored.get(name) for name in ("devices", "accelerators")}
        good = (
            all(isinstance(flag, bool) for flag in flags.values())
            and isinstance(version, list)
            and len(version) == 3
            and all(type(part) is int for part in version)
            and all(_is_names(value) for value in names.values())
        )
        if not good:
            raise ValueError("not facts about a QEMU")
        sets = {name: frozenset(value or ()) for name, value in names.items()}
        return cls(version=tuple(version or ()), **flags, **sets)  # type: ignore[arg-type]


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


@attrs.frozen
class Obstacle:
    """Why a QEMU can't be used, and what to do about it."""

    reason: str
    remedy: str


def obstacle(facts: QemuFacts, program: str, accel: str) -> Obstacle | None:
    """The first thing that keeps us from using that QEMU, or None."""
    what = f"{program} (QEMU {facts.version_text})"
    newer = "Install one that has it, or name another with backend_options={'program': ...}."
    if facts.version < MIN_VERSION:
        wanted = ".".join(map(str, MIN_VERSION[:2]))
        return Obstacle(
            f"{what} is older than {wanted}.",
            f"Install a newer one, or name it with backend_options={{'program': ...}}. {INSTALL}",
        )
    if not facts.has_machine:
        return Obstacle(f"{what} was built without the machine type {MACHINE!r}.", newer)
    if not facts.has_memfd:
        return Obstacle(f"{what} was built without {MEMORY_OBJECT!r}.", newer)
    if CHANNEL_DEVICE not in facts.devices:
        return Obstacle(f"{what} was built without the device {CHANNEL_DEVICE!r}.", newer)
    if accel not in facts.accelerators:
        return Obstacle(f"{what} was built without the accelerator {accel!r}.", newer)
    return None
