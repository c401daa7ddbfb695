"""The ``qemu`` backend plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import BackendFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import HostedPlatform, ProbeReport

VIRTIO_IDS = frozenset({1, 2, 4, 19, 26})
"""net, blk, rng, vsock, fs: the keys of `microvm_qemu._devices.FRONT_ENDS`, not imported here."""


def probe(options: Mapping[str, Any]) -> ProbeReport:
    """As `BackendFactory.probe`."""
    from microvm_qemu._probe import probe

    return probe(options)


def create(options: Mapping[str, Any]) -> HostedPlatform:
    """As `BackendFactory.create`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
        BackendUnavailable: the probe would not have said usable.
    """
    from microvm_qemu._options import parse_options
    from microvm_qemu._platform import QemuPlatform
    from microvm_qemu._probe import find

    checked = parse_options(options)
    return QemuPlatform(checked, find(checked))


@hookimpl
def microvm_register_backend() -> BackendFactory:
    """Offer the backend."""
    from microvm.abc import Capability

    return BackendFactory(
        name="qemu",
        summary="the system's QEMU: runs anywhere, in software unless asked for KVM",
        capabilities=frozenset(
            {
                Capability.OWN_KERNEL,
                Capability.VIRTIO_DEVICES,
                Capability.PAUSE,
                Capability.CONSOLE,
            }
        ),
        probe=probe,
        create=create,
        preference=50,
        virtio_ids=VIRTIO_IDS,
    )
