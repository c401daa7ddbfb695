"""The ``kvm`` backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import BackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import Hypervisor, ProbeReport


def probe(options: Mapping[str, Any]) -> ProbeReport:
    """As `BackendFactory.probe`."""
    from microvm_kvm._probe import probe

    return probe(options)


def create(options: Mapping[str, Any]) -> Hypervisor:
    """As `BackendFactory.create`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm_kvm._options import parse_options

    parse_options(options)
    from microvm_kvm._kvm import KvmHypervisor

    return KvmHypervisor()


@hookimpl
def microvm_register_backend() -> BackendFactory:
    """Offer the backend."""
    from microvm.abc import Capability

    return BackendFactory(
        name="kvm",
        summary="Linux's KVM: guest code on the CPU itself, devices in this process",
        capabilities=frozenset(
            {
                Capability.OWN_KERNEL,
                Capability.VIRTIO_DEVICES,
                Capability.PAUSE,
                Capability.CONSOLE,
                Capability.EXIT_COUNTS,
            }
        ),
        probe=probe,
        create=create,
        preference=10,
    )
