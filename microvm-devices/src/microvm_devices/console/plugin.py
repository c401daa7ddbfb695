"""The ``console`` device plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import DeviceFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice


def create(options: Mapping[str, Any]) -> VirtioDevice:
    """A `ConsoleDevice` with the options of `ConsoleConfig`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm_devices.console.config import ConsoleConfig
    from microvm_devices.console.device import ConsoleDevice
    from microvm_devices.options import config_of

    return ConsoleDevice(config_of(ConsoleConfig, "console", options))


@hookimpl
def microvm_register_device() -> DeviceFactory:
    """Offer the device."""
    return DeviceFactory(
        name="console",
        summary="virtio-console: a terminal (hvc0) and named ports",
        virtio_id=3,
        create=create,
    )
