"""The ``vsock`` device plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import DeviceFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice


def create(options: Mapping[str, Any]) -> VirtioDevice:
    """A `VsockDevice` with the options of `microvm.VsockConfig`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm.config import VsockConfig
    from microvm_devices.options import config_of

    config = config_of(VsockConfig, "vsock", options)
    from microvm_devices.vsock.device import VsockDevice

    return VsockDevice(config)


@hookimpl
def microvm_register_device() -> DeviceFactory:
    """Offer the device."""
    return DeviceFactory(
        name="vsock",
        summary="virtio-vsock: streams between host and guest ports",
        virtio_id=19,
        create=create,
    )
