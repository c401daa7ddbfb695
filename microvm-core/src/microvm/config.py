"""What a machine is made of: frozen values, checked when they are made.

Sizes carry their unit in the name. A value that exists is valid by itself; what only a backend,
a plugin or the file system can tell (is there such a backend, does that file hold a kernel) is
checked before boot and reported as `ConfigProblem`s, all at once.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs

from microvm.errors import ConfigError

MIN_MEM_SIZE_MIB = 40
"""Our own image boots from 33 MiB on, and leaves a program 20 MiB of these 40. At 32 its kernel
finds the initramfs damaged and comes to nothing, until `ready_within_s` is over."""
MAX_MEM_SIZE_MIB = 1 << 20
MAX_VCPU_COUNT = 255
"""The xAPIC's 8-bit ids; what a backend allows may be less."""
MIN_GUEST_CID = 3
"""virtio 1.2, 5.10.4: 0 and 1 are reserved, 2 is the host's."""
MAX_GUEST_CID = 0xFFFF_FFFE
MAX_CMDLINE_BYTES = 2047
"""COMMAND_LINE_SIZE on x86_64 is 2048 including the NUL byte."""


class Isolation(enum.StrEnum):
    """Where a machine's devices and its virtual CPUs' exits are served."""

    INLINE = "inline"
    """In the process that uses the machine, on its trio thread."""
    PROCESS = "process"
    """In a worker process of the machine's own."""


@attrs.frozen
class ConfigProblem:
    """One thing wrong with a configuration: where, what, and what to do."""

    where: str
    """The path of field names, e.g. ``boot.kernel``."""
    what: str
    remedy: str | None = None

    def __str__(self) -> str:
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{self.where}: {self.what}{tail}"


def _frozen_mapping(value: Mapping[str, Any]) -> Any:
    """What is no mapping is left as it is, for the checks to refuse."""
    given: object = value
    return MappingProxyType(dict(given)) if isinstance(given, Mapping) else given


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


def _tuple(value: Iterable[Any]) -> Any:
    """A text is left as it is, for the checks to refuse: its letters are no list of names."""
    given: object = value
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def _isolation(value: str) -> Any:
    """What names none is left as it is, for the checks to refuse."""
    given: object = value
    return Isolation(given) if isinstance(given, str) and given in set(Isolation) else given


class _Checks:
    """Collects problems, so that a constructor reports all of them in one error."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._problems: list[ConfigProblem] = []

    def require(self, holds: bool, where: str, what: str, remedy: str | None = None) -> None:
        if not holds:
            self._problems.append(ConfigProblem(where, what, remedy))

    def integer(self, value: object, where: str, low: int, high: int) -> None:
        """`bool` is an `int` to Python, and `vcpu_count=True` is a mistake."""
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        self.require(good, where, f"must be a whole number from {low} to {high}, not {value!r}.")

    def kind(self, value: object, where: str, kind: type, *, optional: bool = False) -> bool:
        """Whether the value is of that type, or None where that is allowed."""
        good = isinstance(value, kind) or (optional and value is None)
        wanted = f"a {kind.__name__}{' or None' if optional else ''}"
        self.require(good, where, f"must be {wanted}, not {value!r}.")
        return good

    def all_of(self, values: object, where: str, kind: type) -> bool:
        """Whether it is a tuple of values of that type; other collections were made one."""
        good = isinstance(values, tuple) and all(isinstance(value, kind) for value in values)
        self.require(good, where, f"must be a list of {kind.__name__}, not {values!r}.")
        return good

    def done(self) -> None:
        if self._problems:
            raise ConfigError(f"{self._what} can't be used as given:", problems=self._problems)


@attrs.frozen(kw_only=True)
class BootSource:
    """A kernel of the user's own, in place of the image a provisioner would bring."""

    kernel: Path = attrs.field(converter=Path)
    initrd: Path | None = attrs.field(default=None, converter=_path)
    cmdline: str = ""
    """Words put after those the backend and the plugins ask for; the last of a kind wins."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The boot source")
        check_cmdline(checks, self.cmdline, "cmdline")
        checks.done()


def check_cmdline(checks: _Checks, words: str, where: str) -> None:
    """A kernel command line is one printable ASCII line that fits COMMAND_LINE_SIZE."""
    if not checks.kind(words, where, str):
        return
    checks.require(
        words.isascii() and all(c.isprintable() for c in words),
        where,
        "must be one line of printable ASCII.",
    )
    checks.require(
        len(words) <= MAX_CMDLINE_BYTES, where, f"must be at most {MAX_CMDLINE_BYTES} bytes."
    )


@attrs.frozen(kw_only=True)
class VsockConfig:
    """The virtio-vsock device: the channel into the guest that everything else uses."""

    guest_cid: int = MIN_GUEST_CID
    uds_path: Path | None = attrs.field(default=None, converter=_path)
    """Where other processes reach guest ports: an AF_UNIX socket with the ``CONNECT <port>``
    handshake, and ``<uds_path>_<port>`` for connections that the guest begins."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The vsock configuration")
        checks.integer(self.guest_cid, "guest_cid", MIN_GUEST_CID, MAX_GUEST_CID)
        checks.done()


@attrs.frozen(kw_only=True)
class DeviceConfig:
    """A device by the name of its plugin, with the options which that plugin reads."""

    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_mapping, hash=False)

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The device configuration")
        name: object = self.name
        checks.require(
            isinstance(name, str) and name != "",
            "name",
            f"must name a device plugin, not be {name!r}.",
        )
        checks.kind(self.options, "options", Mapping)
        checks.done()


@attrs.frozen(kw_only=True)
class MachineConfig:
    """A machine, described."""

    mem_size_mib: int = 128
    vcpu_count: int = 1
    boot: BootSource | None = None
    """None: the image that the provisioners bring."""
    cmdline: str = ""
    """Kernel command line words, put last."""
    vsock: VsockConfig | None = attrs.field(factory=VsockConfig)
    devices: tuple[DeviceConfig, ...] = attrs.field(default=(), converter=_tuple)
    provisioners: tuple[str, ...] = attrs.field(default=("agent",), converter=_tuple)
    """Names of provisioner plugins. Empty: the guest is on its own, and `run` is not to be had."""
    backend: str | None = None
    """A backend by name, or None to let the best usable one be chosen. A backend given by name
    is never replaced by another."""
    backend_options: Mapping[str, Any] = attrs.field(
        factory=dict, converter=_frozen_mapping, hash=False
    )
    isolation: Isolation = attrs.field(default=Isolation.INLINE, converter=_isolation)
    """Also by its value, ``"inline"`` or ``"process"``."""
    ready_within_s: float = 60.0
    """Bound on the time from start to the agent's hello; past it `GuestNotReady` is raised."""

    def __attrs_post_init__(self) -> None:
        checks = _Checks("The machine")
        checks.integer(self.mem_size_mib, "mem_size_mib", MIN_MEM_SIZE_MIB, MAX_MEM_SIZE_MIB)
        checks.integer(self.vcpu_count, "vcpu_count", 1, MAX_VCPU_COUNT)
        checks.kind(self.boot, "boot", BootSource, optional=True)
        check_cmdline(checks, self.cmdline, "cmdline")
        checks.kind(self.vsock, "vsock", VsockConfig, optional=True)
        checks.all_of(self.devices, "devices", DeviceConfig)
        if checks.all_of(self.provisioners, "provisioners", str):
            for name in sorted({n for n in self.provisioners if self.provisioners.count(n) > 1}):
                checks.require(False, "provisioners", f"names {name!r} twice.")
        named = isinstance(self.backend, str) and self.backend != ""
        checks.require(self.backend is None or named, "backend", "must be a name or None.")
        checks.kind(self.backend_options, "backend_options", Mapping)
        checks.require(
            isinstance(self.isolation, Isolation),
            "isolation",
            f"must be one of {', '.join(Isolation)}, not {self.isolation!r}.",
        )
        ready: object = self.ready_within_s
        checks.require(
            isinstance(ready, (int, float)) and ready > 0,
            "ready_within_s",
            f"must be a positive number of seconds, not {ready!r}.",
        )
        checks.require(
            not (self.provisioners and self.vsock is None),
            "vsock",
            "a provisioner reaches the guest through it.",
            "Leave it on, or give provisioners=().",
        )
        checks.done()

    def all_devices(self) -> tuple[DeviceConfig, ...]:
        """Every device of the machine in the form plugins take, the vsock device first."""
        if self.vsock is None:
            return self.devices
        options = {"guest_cid": self.vsock.guest_cid, "uds_path": self.vsock.uds_path}
        return (DeviceConfig(name="vsock", options=options), *self.devices)
