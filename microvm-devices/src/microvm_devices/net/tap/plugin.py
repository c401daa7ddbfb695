"""The ``tap`` net backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.errors import ConfigError
from microvm.plugins import NetBackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import NetBackend


def create(options: Mapping[str, Any]) -> NetBackend:
    """A `TapBackend` by an interface's ``name``, or by open descriptors in ``fds``.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm_devices.net.tap.backend import TapBackend, read_options

    return TapBackend(read_options(options))


def parse_cli(text: str) -> Mapping[str, Any]:
    """The interface's name stands behind the colon.

    Raises:
        ConfigError: nothing stands there.
    """
    if not text:
        raise ConfigError("Which TAP interface? --net tap:NAME")
    return {"name": text}


@hookimpl
def microvm_register_net_backend() -> NetBackendFactory:
    """Offer the backend."""
    return NetBackendFactory(
        name="tap",
        summary="a TAP interface of the host (Linux)",
        create=create,
        syntax="tap:NAME",
        parse_cli=parse_cli,
    )
