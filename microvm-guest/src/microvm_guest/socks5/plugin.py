"""The `socks5` provisioner's entry point."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from microvm.plugins import ProvisionerFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import Provisioner
    from microvm.config import ConfigProblem, MachineConfig


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


@hookimpl
def microvm_check_config(config: MachineConfig) -> Iterable[ConfigProblem]:
    """Say what the provisioner lacks, where it is asked for."""
    if "socks5" not in config.provisioners:
        return ()
    from microvm_guest.provisioners.socks5 import problems

    return problems(config)
