"""The ``net`` device plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import DeviceFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice


def create(options: Mapping[str, Any]) -> VirtioDevice:
    """A `NetDevice` with the options of `microvm.NetConfig`, its backend made already.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm_devices.net.device import NetDevice
    from microvm_devices.net.settings import read_options

    return NetDevice(*read_options(options))


@hookimpl
def microvm_register_device() -> DeviceFactory:
    """Offer the device."""
    return DeviceFactory(
        name="net",
        summary="virtio-net: a network card, its frames carried by a net backend",
        virtio_id=1,
        create=create,
    )
