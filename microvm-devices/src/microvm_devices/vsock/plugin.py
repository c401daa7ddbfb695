"""The ``vsock`` device plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import DeviceFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice

OPTIONS = ("guest_cid", "uds_path")


def create(options: Mapping[str, Any]) -> VirtioDevice:
    """A `VsockDevice` with the options of `microvm.VsockConfig`.

    Raises:
        ConfigError: an option is unknown, or its value can't be used.
    """
    from microvm.config import ConfigProblem, VsockConfig
    from microvm.errors import ConfigError

    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ConfigError(
            "The vsock device can't be used as given:",
            problems=[
                ConfigProblem(name, "is no option of it.", f"It knows {', '.join(OPTIONS)}.")
                for name in unknown
            ],
        )
    config = VsockConfig(**options)
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
