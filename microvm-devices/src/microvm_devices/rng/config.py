"""The options of the ``rng`` device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from microvm.config import ConfigProblem, RateLimit, as_rate_limit
from microvm.errors import ConfigError
from microvm_devices.options import config_of

DEFAULT_LIMIT: Final = RateLimit(
    bytes_per_s=4 << 20, burst_bytes=4 << 20, ops_per_s=20_000, burst_ops=20_000
)
"""What no guest needs, and what a host does not feel: about a twentieth of a core."""


@attrs.frozen(kw_only=True)
class RngConfig:
    """What the device gives, and how fast."""

    source: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """A character device of the host to read from, such as ``/dev/hwrng``; None: the host's own
    random numbers (getrandom)."""
    rate_limit: RateLimit | None = attrs.field(default=DEFAULT_LIMIT, converter=as_rate_limit)
    """Also a number of bytes a second, or a text like ``64K``; None: as fast as the host can."""

    def __attrs_post_init__(self) -> None:
        limit: object = self.rate_limit
        if limit is not None and not isinstance(limit, RateLimit):
            raise ConfigError(
                "The rng device can't be used as given:",
                problems=[ConfigProblem("rate_limit", f"must be a RateLimit, not {limit!r}.")],
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RngConfig:
        """From a `DeviceConfig`'s options.

        Raises:
            ConfigError: an option is unknown, or its value can't be used.
        """
        return config_of(cls, "rng", options)
