"""The `openvpn` provisioner's entry point."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from microvm.plugins import ProvisionerFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import Provisioner
    from microvm.config import ConfigProblem, MachineConfig


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


@hookimpl
def microvm_check_config(config: MachineConfig) -> Iterable[ConfigProblem]:
    """Say what the provisioner lacks, where it is asked for."""
    if "openvpn" not in config.provisioners:
        return ()
    from microvm_guest.provisioners.openvpn import problems

    return problems(config)
