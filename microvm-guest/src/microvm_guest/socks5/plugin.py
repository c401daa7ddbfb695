"""The `socks5` provisioner's entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.plugins import ProvisionerFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import Provisioner


def _create() -> Provisioner:
    from microvm_guest.provisioners.socks5 import Socks5Provisioner

    return Socks5Provisioner()


@hookimpl
def microvm_register_provisioner() -> ProvisionerFactory:
    """Offer the SOCKS5 server."""
    return ProvisionerFactory(
        name="socks5",
        summary="Has the guest's SOCKS5 server up as soon as the guest is ready.",
        create=_create,
    )
