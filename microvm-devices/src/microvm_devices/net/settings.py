"""`NetSettings`: a device's options, read and completed. Pure but for the random address."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from microvm.abc import NetBackend
from microvm.config import NetConfig, RateLimit
from microvm.errors import ConfigError
from microvm_devices.options import refuse, unknown_options

OPTIONS: Final = tuple(field.name for field in attrs.fields(NetConfig) if field.name != "options")

DEFAULT_MTU: Final = 1500


@attrs.frozen(kw_only=True)
class NetSettings:
    """What a device is made with, beside its backend."""

    mac: bytes
    fixed_mac: bool
    """Whether the address was given: then the driver can't change it, and nothing else is let out
    as a source."""
    mtu: int = DEFAULT_MTU
    queues: int = 1
    capture: Path | None = None
    rx_rate_limit: RateLimit | None = None
    tx_rate_limit: RateLimit | None = None


def read_options(options: Mapping[str, Any]) -> tuple[NetBackend, NetSettings]:
    """The backend and the settings in the options of a `NetConfig`'s device.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    refuse("net", unknown_options(options, OPTIONS))
    backend = options.get("backend")
    if not isinstance(backend, NetBackend):
        raise ConfigError(
            f"The net device's backend must be a NetBackend, not {backend!r}.",
            remedy="Name it in nets=(NetConfig(backend=...),), which makes it.",
        )
    config = NetConfig(**{**options, "backend": "given"})
    mac = backend.mac if config.mac is None else bytes.fromhex(config.mac.replace(":", ""))
    return backend, NetSettings(
        mac=mac if mac is not None else random_mac(),
        fixed_mac=config.mac is not None,
        mtu=config.mtu or backend.mtu or DEFAULT_MTU,
        queues=config.queues,
        capture=config.capture,
        rx_rate_limit=config.rx_rate_limit,
        tx_rate_limit=config.tx_rate_limit,
    )


def random_mac() -> bytes:
    """An address of one station, locally administered (IEEE 802, 8.2.2)."""
    first, *rest = secrets.token_bytes(6)
    return bytes((first & 0xFC | 2, *rest))
