"""The plugin as core sees it: options, and problems told before a machine starts."""

from pathlib import Path

import attrs
import pytest

import microvm_devices.blk.plugin
from microvm.config import DriveConfig
from microvm.errors import ConfigError, ImageError
from microvm.testing.plugins import plugin_manager


def test_the_plugin_makes_the_device_of_a_drive(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    manager = plugin_manager(plugins={"device/blk": microvm_devices.blk.plugin})
    factory = manager.load_device("blk")
    assert factory.virtio_id == 2
    drive = DriveConfig(path=image, queues=2, serial="s", read_only=True)
    options = {name: getattr(drive, name) for name in microvm_devices.blk.plugin.OPTIONS}
    device = factory.create(options)
    assert device.device_id == 2
    assert len(device.queue_max_sizes) == 2


def test_its_options_are_a_drive_s_but_for_root_which_is_core_s() -> None:
    fields = {field.name for field in attrs.fields(DriveConfig)}
    assert set(microvm_devices.blk.plugin.OPTIONS) == fields - {"root"}


def test_making_it_opens_nothing(tmp_path: Path) -> None:
    """A machine in a worker is described here and made there: two devices of one drive."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    for _ in range(2):
        microvm_devices.blk.plugin.create({"path": image})


def test_options_that_it_does_not_know_are_all_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        microvm_devices.blk.plugin.create({"root": True, "format": "qcow2"})
    assert [problem.where for problem in caught.value.problems] == ["format", "root", "path"]


def test_a_file_that_is_no_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such file"):
        microvm_devices.blk.plugin.create({"path": tmp_path / "missing"})
