"""What microvm finds through the entry point. The platform is imported when one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.abc import Capability, ProbeReport
from microvm.plugins import BackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm_paper.platform import PaperPlatform


def probe(options: Mapping[str, Any]) -> ProbeReport:
    """Say whether it can be used: nothing is missing ever, but it has to be asked for."""
    if options.get("pretend") is True:
        return ProbeReport(backend="paper", usable=True, reason="Paper is always at hand.")
    return ProbeReport(
        backend="paper",
        usable=False,
        reason="Machines of paper run nothing.",
        remedy="If you want one all the same, set backend_options={'pretend': True}.",
    )


def create(options: Mapping[str, Any]) -> PaperPlatform:
    """Make the platform; the probe has looked at the options."""
    from microvm_paper.platform import PaperPlatform

    return PaperPlatform()


@hookimpl
def microvm_register_backend() -> BackendFactory:
    """Offer the backend under the entry point's name."""
    return BackendFactory(
        name="paper",
        summary="Machines of paper, which run nothing",
        capabilities=frozenset(
            {Capability.OWN_KERNEL, Capability.OWN_CHANNELS, Capability.CONSOLE}
        ),
        probe=probe,
        create=create,
        preference=1000,
    )
