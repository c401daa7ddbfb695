"""`NetSettings`: a device's options, read and completed. Pure but for the random address."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from microvm.abc import NetBackend
from microvm.config import ConfigProblem, NetConfig, RateLimit
from microvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    _refuse_unknown(sorted(set(options) - set(OPTIONS)))
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


def _refuse_unknown(names: Sequence[str]) -> None:
    if names:
        raise ConfigError(
            "The net device can't be used as given:",
            problems=[
                ConfigProblem(name, "is no option of it.", f"It knows {', '.join(OPTIONS)}.")
                for name in names
            ],
        )
