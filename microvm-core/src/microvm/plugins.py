"""What a plugin registers: the hook marker and the factory records.

A plugin module imports `hookimpl` and one record from here, and returns the record from its
registration hook. Nothing heavy belongs in that module: the record's callables import what they
need when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

if TYPE_CHECKING:
    from microvm.abc import Capability, HostedPlatform, ProbeReport, Provisioner, VirtioDevice

PROJECT = "microvm"

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of a hook."""


@attrs.frozen(kw_only=True)
class BackendFactory:
    """A backend on offer."""

    name: str
    summary: str
    capabilities: frozenset[Capability]
    probe: Callable[[Mapping[str, Any]], ProbeReport]
    """Gets `MachineConfig.backend_options`; quick, polite, and never raises."""
    create: Callable[[Mapping[str, Any]], HostedPlatform]
    """Gets the same options, once the probe has said usable."""
    preference: int = 50
    """Among usable backends the lowest wins: hypervisors 10, software emulation 50."""
    virtio_ids: frozenset[int] | None = None
    """Virtio device ids it can attach; None for any."""


@attrs.frozen(kw_only=True)
class DeviceFactory:
    """A device on offer."""

    name: str
    summary: str
    virtio_id: int
    create: Callable[[Mapping[str, Any]], VirtioDevice]
    """Gets `DeviceConfig.options`; raises `ConfigError` for one that it does not know."""


@attrs.frozen(kw_only=True)
class ProvisionerFactory:
    """A provisioner on offer."""

    name: str
    summary: str
    create: Callable[[], Provisioner]
