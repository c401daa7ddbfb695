"""The ``blk`` device plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.plugins import DeviceFactory, hookimpl

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice

OPTIONS = ("path", "queues", "rate_limit", "read_only", "serial", "writeback")


def create(options: Mapping[str, Any]) -> VirtioDevice:
    """A `BlkDevice` with the options of `microvm.DriveConfig`, but for `root`, which is core's.

    Raises:
        ConfigError: an option is unknown or missing, or its value can't be used.
        ImageError: the file can't be a disk.
    """
    from microvm.config import ConfigProblem, DriveConfig
    from microvm_devices.options import refuse, unknown_options

    problems = unknown_options(options, OPTIONS)
    if "path" not in options:
        problems.append(ConfigProblem("path", "must name a raw image or a block device."))
    refuse("blk", problems)
    config = DriveConfig(**options)
    from microvm_devices.blk.device import BlkDevice
    from microvm_devices.blk.raw_disk import check_drive, open_raw_disk

    check_drive(config)
    return BlkDevice(config, open_raw_disk)


@hookimpl
def microvm_register_device() -> DeviceFactory:
    """Offer the device."""
    return DeviceFactory(
        name="blk",
        summary="virtio-blk: raw images and block devices as the guest's disks",
        virtio_id=2,
        create=create,
    )
