"""The ``passt`` net backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import NetBackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import NetBackend


def create(options: Mapping[str, Any]) -> NetBackend:
    """A `PasstBackend` with the options of `PasstOptions`.

    Raises:
        ConfigError: an option is unknown, its value can't be used, or there is no passt.
    """
    from microvm_devices.net.passt.backend import PasstBackend
    from microvm_devices.net.passt.options import find_passt, read_options

    return PasstBackend(read_options(options), find_passt())


@hookimpl
def microvm_register_net_backend() -> NetBackendFactory:
    """Offer the backend."""
    return NetBackendFactory(
        name="passt",
        summary="the host's own network, with no privileges and no set-up",
        create=create,
    )
