"""The ``null`` net backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import NetBackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import NetBackend


def create(options: Mapping[str, Any]) -> NetBackend:
    """A `NullBackend`.

    Raises:
        ConfigError: there are options.
    """
    from microvm_devices.net.null.link import NullBackend
    from microvm_devices.net.options import check_names

    check_names("null", options, ())
    return NullBackend()


@hookimpl
def microvm_register_net_backend() -> NetBackendFactory:
    """Offer the backend."""
    return NetBackendFactory(name="null", summary="a cable that leads nowhere", create=create)
