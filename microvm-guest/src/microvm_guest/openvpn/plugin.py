"""The `openvpn` provisioner's entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.plugins import ProvisionerFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import Provisioner


def _create() -> Provisioner:
    from microvm_guest.provisioners.openvpn import OpenVpnProvisioner

    return OpenVpnProvisioner()


@hookimpl
def microvm_register_provisioner() -> ProvisionerFactory:
    """Offer OpenVPN."""
    return ProvisionerFactory(
        name="openvpn",
        summary="Brings OpenVPN, and lets the guest's SOCKS5 server out by its tunnel alone.",
        create=_create,
    )
