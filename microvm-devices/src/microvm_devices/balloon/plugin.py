"""The ``balloon`` device plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import DeviceFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice


def create(options: Mapping[str, Any]) -> VirtioDevice:
    """A `BalloonDevice` with the options of `BalloonConfig`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm_devices.balloon.config import BalloonConfig
    from microvm_devices.balloon.device import BalloonDevice
    from microvm_devices.options import config_of

    return BalloonDevice(config_of(BalloonConfig, "balloon", options))


@hookimpl
def microvm_register_device() -> DeviceFactory:
    """Offer the device."""
    return DeviceFactory(
        name="balloon",
        summary="virtio-balloon: memory that the guest does not use goes back to the host",
        virtio_id=5,
        create=create,
    )
