"""An embeddable microVM framework.

    import trio
    from microvm import Machine

    async def main():
        async with Machine() as machine:
            result = await machine.run(["uname", "-a"])
            print(result.stdout.decode())

    trio.run(main)

Importing this module costs next to nothing: each name is fetched on first use (PEP 562), so an
application that only might start a machine pays for trio and the plugin system when it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.abc import (
        Capability,
        CopyLimits,
        Guest,
        GuestProcess,
        ProbeReport,
        RunResult,
        TtySize,
    )
    from microvm.config import (
        BootSource,
        ConfigProblem,
        ConsoleConfig,
        ConsoleDevice,
        ConsoleOutput,
        DeviceConfig,
        DriveConfig,
        Isolation,
        MachineConfig,
        NetConfig,
        RateLimit,
        VsockConfig,
    )
    from microvm.errors import (
        BackendError,
        BackendUnavailable,
        BootError,
        CommandFailed,
        ConfigError,
        GuestError,
        GuestFileError,
        GuestFileNotFound,
        GuestGone,
        GuestNotReady,
        GuestRefused,
        ImageError,
        MicrovmError,
        PluginError,
    )
    from microvm.metrics import MachineMetrics
    from microvm.outbound import OutboundPolicy
    from microvm.outcome import MachineOutcome, OutcomeReason

_HOMES = {
    "BackendError": "errors",
    "BackendUnavailable": "errors",
    "BootError": "errors",
    "BootSource": "config",
    "Capability": "abc",
    "CommandFailed": "errors",
    "ConfigError": "errors",
    "ConfigProblem": "config",
    "ConsoleConfig": "config",
    "ConsoleDevice": "config",
    "ConsoleOutput": "config",
    "CopyLimits": "abc",
    "DeviceConfig": "config",
    "DriveConfig": "config",
    "Guest": "abc",
    "GuestError": "errors",
    "GuestFileError": "errors",
    "GuestFileNotFound": "errors",
    "GuestGone": "errors",
    "GuestNotReady": "errors",
    "GuestProcess": "abc",
    "GuestRefused": "errors",
    "ImageError": "errors",
    "Isolation": "config",
    "Machine": "_machine",
    "MachineConfig": "config",
    "MachineMetrics": "metrics",
    "MachineOutcome": "outcome",
    "MicrovmError": "errors",
    "NetConfig": "config",
    "OutboundPolicy": "outbound",
    "OutcomeReason": "outcome",
    "PluginError": "errors",
    "ProbeReport": "abc",
    "RateLimit": "config",
    "RunResult": "abc",
    "TtySize": "abc",
    "VsockConfig": "config",
}

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "BootError",
    "BootSource",
    "Capability",
    "CommandFailed",
    "ConfigError",
    "ConfigProblem",
    "ConsoleConfig",
    "ConsoleDevice",
    "ConsoleOutput",
    "CopyLimits",
    "DeviceConfig",
    "DriveConfig",
    "Guest",
    "GuestError",
    "GuestFileError",
    "GuestFileNotFound",
    "GuestGone",
    "GuestNotReady",
    "GuestProcess",
    "GuestRefused",
    "ImageError",
    "Isolation",
    "Machine",
    "MachineConfig",
    "MachineMetrics",
    "MachineOutcome",
    "MicrovmError",
    "NetConfig",
    "OutboundPolicy",
    "OutcomeReason",
    "PluginError",
    "ProbeReport",
    "RateLimit",
    "RunResult",
    "TtySize",
    "VsockConfig",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
