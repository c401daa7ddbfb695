"""`Order`: what a worker is told to build, as values; and its form in JSON. Pure.

Every choice has been made: which backend, which files, which command line. What an option of a
device or a backend may be is wider than JSON, so those that need it are put into an object with
one key that names their type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

import attrs

from microvm.config import (
    BootSource,
    ConfigProblem,
    ConsoleConfig,
    DeviceConfig,
    DriveConfig,
    Isolation,
    MachineConfig,
    NetConfig,
    RateLimit,
    VsockConfig,
)
from microvm.errors import ConfigError

if TYPE_CHECKING:
    from microvm.abc import MachinePlan
    from microvm.worker.frames import Message


@attrs.frozen(kw_only=True)
class Order:
    """A machine to build: all of a `MachinePlan` but the devices made, and the backend's name."""

    backend: str
    config: MachineConfig
    kernel: Path
    initrd: Path | None
    cmdline: str
    log_level: int
    """Of what the worker has to say, as in `logging`."""

    @classmethod
    def of(cls, plan: MachinePlan, *, backend: str, log_level: int) -> Self:
        """The order for a plan."""
        return cls(
            backend=backend,
            config=plan.config,
            kernel=plan.kernel,
            initrd=plan.initrd,
            cmdline=plan.cmdline,
            log_level=log_level,
        )

    def to_json(self) -> Message:
        """As JSON's types.

        Raises:
            ConfigError: an option can't be told to another process; lists every problem.
        """
        config = self.config
        return {
            "backend": self.backend,
            "kernel": os.fspath(self.kernel),
            "initrd": _path(self.initrd),
            "cmdline": self.cmdline,
            "log_level": self.log_level,
            "config": {
                "mem_size_mib": config.mem_size_mib,
                "vcpu_count": config.vcpu_count,
                "boot": config.boot
                and {
                    "kernel": os.fspath(config.boot.kernel),
                    "initrd": _path(config.boot.initrd),
                    "cmdline": config.boot.cmdline,
                },
                "cmdline": config.cmdline,
                # Where it leads, and the machine's name, are the caller's affair.
                "console": config.console.device.value,
                "vsock": config.vsock
                and {
                    "guest_cid": config.vsock.guest_cid,
                    "uds_path": _path(config.vsock.uds_path),
                },
                "drives": [_drive(drive) for drive in config.drives],
                "nets": [_net(net) for net in config.nets],
                "devices": [
                    {"name": device.name, "options": _options(device.options)}
                    for device in config.devices
                ],
                "provisioners": list(config.provisioners),
                "backend_options": _options(config.backend_options),
                "ready_within_s": config.ready_within_s,
            },
        }

    @classmethod
    def from_json(cls, message: Message) -> Self:
        """What `to_json` made; only the caller's process sends one, and it is believed."""
        fields = dict(message["config"])
        boot, vsock = fields["boot"], fields["vsock"]
        fields |= {
            "boot": boot and BootSource(**boot),
            "vsock": vsock and VsockConfig(**vsock),
            "console": ConsoleConfig(device=fields["console"]),
            "drives": [DriveConfig(**_with_limits(drive)) for drive in fields["drives"]],
            "nets": [
                NetConfig(**_with_limits(net) | {"options": _from_options(net["options"])})
                for net in fields["nets"]
            ],
            "devices": [
                DeviceConfig(name=device["name"], options=_from_options(device["options"]))
                for device in fields["devices"]
            ],
            "backend_options": _from_options(fields["backend_options"]),
            "isolation": Isolation.INLINE,
        }
        initrd = message["initrd"]
        return cls(
            backend=message["backend"],
            config=MachineConfig(**fields, backend=message["backend"]),
            kernel=Path(message["kernel"]),
            initrd=None if initrd is None else Path(initrd),
            cmdline=message["cmdline"],
            log_level=message["log_level"],
        )


def option_problems(config: MachineConfig) -> list[ConfigProblem]:
    """What of a configuration can't be told to another process."""
    places = {"backend_options": config.backend_options}
    for group in ("nets", "devices"):
        each = enumerate(getattr(config, group))
        places |= {f"{group}[{index}].options": one.options for index, one in each}
    problems: list[ConfigProblem] = []
    for place, options in places.items():
        for name, value in options.items():
            try:
                _options({name: value})
            except ConfigError as error:
                problems.append(ConfigProblem(f"{place}.{name}", error.message, error.remedy))
    return problems


def _path(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _options(options: Mapping[str, Any]) -> Any:
    return {_name(name): _option(value) for name, value in options.items()}


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise _unsuitable(name)
    return name


def _option(value: object) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value  # of a subclass, such as an enumeration, JSON takes the value
        case bytes():
            return {"bytes": value.hex()}
        case PurePath():
            return {"path": os.fspath(value)}
        case list():
            return {"list": [_option(item) for item in value]}
        case tuple():
            return {"tuple": [_option(item) for item in value]}
        case Mapping():
            return {"map": _options(value)}
    raise _unsuitable(value)


def _unsuitable(value: object) -> ConfigError:
    return ConfigError(
        f"can't be told to a worker process, being a {type(value).__name__}.",
        remedy="Give texts, numbers, bytes, paths, and lists and mappings of them; or "
        'isolation="inline".',
    )


def _drive(drive: DriveConfig) -> Message:
    return {**attrs.asdict(drive), "path": os.fspath(drive.path)}


def _net(net: NetConfig) -> Message:
    fields = attrs.asdict(net, filter=lambda field, _: field.name != "options")
    return {**fields, "capture": _path(net.capture), "options": _options(net.options)}


def _with_limits(fields: Message) -> dict[str, Any]:
    """The fields of a drive or a net, their rate limits made again."""
    limits = {
        name: RateLimit(**limit)
        for name, limit in fields.items()
        if name.endswith("rate_limit") and limit is not None
    }
    return {**fields, **limits}


def _from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _from_option(value) for name, value in options.items()}


def _from_option(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "bytes":
            return bytes.fromhex(content)
        case "path":
            return Path(content)
        case "list":
            return [_from_option(item) for item in content]
        case "tuple":
            return tuple(_from_option(item) for item in content)
        case "map":
            return _from_options(content)
    raise ValueError(kind)
