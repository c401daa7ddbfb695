"""The ``loopback`` net backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import NetBackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import NetBackend


def create(options: Mapping[str, Any]) -> NetBackend:
    """A `LoopbackBackend`.

    Raises:
        ConfigError: there are options.
    """
    from microvm_devices.net.loopback.link import LoopbackBackend
    from microvm_devices.net.options import check_names

    check_names("loopback", options, ())
    return LoopbackBackend()


@hookimpl
def microvm_register_net_backend() -> NetBackendFactory:
    """Offer the backend."""
    return NetBackendFactory(
        name="loopback", summary="what the guest sends comes back to it", create=create
    )
