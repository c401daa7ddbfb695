"""The ``rng`` device plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import DeviceFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice


def create(options: Mapping[str, Any]) -> VirtioDevice:
    """An `RngDevice` with the options of `RngConfig`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm_devices.rng.config import RngConfig
    from microvm_devices.rng.device import RngDevice

    return RngDevice(RngConfig.from_options(options))


@hookimpl
def microvm_register_device() -> DeviceFactory:
    """Offer the device."""
    return DeviceFactory(
        name="rng",
        summary="virtio-rng: entropy of the host for the guest",
        virtio_id=4,
        create=create,
    )
