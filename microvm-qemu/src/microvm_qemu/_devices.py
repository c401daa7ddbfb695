"""Which of QEMU's vhost-user front ends stands for which virtio device. Pure.

A front end is the half of a device that QEMU keeps: registers, interrupts, the status dance. It
is made for one device type, and some read the configuration space from the back end (blk, vsock's
CID) while others want it as properties (fs). The generic ``vhost-user-device`` would do for any,
but came with QEMU 8.2 and can't be created by users by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from microvm.virtio.ids import DeviceType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm.abc import VirtioDevice

FRONT_ENDS: Final[Mapping[int, str]] = {
    DeviceType.BLOCK: "vhost-user-blk",
    DeviceType.ENTROPY: "vhost-user-rng",
    DeviceType.VSOCK: "vhost-user-vsock-device",
    DeviceType.FS: "vhost-user-fs-device",
}
"""Those that work in 7.2 on virtio-mmio without KVM; ``vhost-user-input`` does not start there."""

FS_TAG_BYTES: Final = 36
FS_CONFIG_BYTES: Final = FS_TAG_BYTES + 4
"""struct virtio_fs_config: tag[36], le32 num_request_queues (virtio 1.2, 5.11.4)."""


def escape_value(value: str) -> str:
    """A value for QEMU's ``key=value,...`` syntax, where a comma is written twice."""
    return value.replace(",", ",,")


def device_argument(device: VirtioDevice, *, chardev: str, bus: str) -> str:
    """The value of ``-device`` for `device`, whose type must be in `FRONT_ENDS`."""
    words = [FRONT_ENDS[device.device_id], f"chardev={chardev}", f"bus={bus}"]
    if device.device_id == DeviceType.BLOCK:
        sizes = device.queue_max_sizes
        words += [f"num-queues={len(sizes)}", f"queue-size={min(sizes)}"]
    elif device.device_id == DeviceType.FS:
        config = device.read_config(0, FS_CONFIG_BYTES)
        tag = config[:FS_TAG_BYTES].rstrip(b"\0").decode("utf-8", "surrogateescape")
        queues = int.from_bytes(config[FS_TAG_BYTES:FS_CONFIG_BYTES], "little")
        words += [
            f"tag={escape_value(tag)}",
            f"num-request-queues={queues}",
            f"queue-size={min(device.queue_max_sizes)}",
        ]
    return ",".join(words)
