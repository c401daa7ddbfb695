"""The `agent` provisioner's entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm.plugins import ProvisionerFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import Provisioner


def _create() -> Provisioner:
    from microvm_guest.provisioners.agent import AgentProvisioner

    return AgentProvisioner()


@hookimpl
def microvm_register_provisioner() -> ProvisionerFactory:
    """Offer the agent."""
    return ProvisionerFactory(
        name="agent",
        summary="Boots our guest image and runs commands through the agent in it.",
        create=_create,
    )
