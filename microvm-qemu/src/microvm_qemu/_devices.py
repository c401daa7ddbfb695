"""Which of QEMU's vhost-user front ends stands for which virtio device. Pure.

A front end is the half of a device that QEMU keeps: registers, interrupts, the status dance. It
is made for one device type, and some read the configuration space from the back end (blk, vsock's
CID) while others want it as properties (fs, net). The generic ``vhost-user-device`` would do for
any, but came with QEMU 8.2 and can't be created by users by default.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from microvm.virtio.ids import DeviceType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm.abc import VirtioDevice

FRONT_ENDS: Final[Mapping[int, str]] = {
    DeviceType.NET: "virtio-net-device",
    DeviceType.BLOCK: "vhost-user-blk",
    DeviceType.ENTROPY: "vhost-user-rng",
    DeviceType.VSOCK: "vhost-user-vsock-device",
    DeviceType.FS: "vhost-user-fs-device",
}
"""Those that work in 7.2 on virtio-mmio without KVM; ``vhost-user-input`` does not start there."""

FS_TAG_BYTES: Final = 36
FS_CONFIG_BYTES: Final = FS_TAG_BYTES + 4
"""struct virtio_fs_config: tag[36], le32 num_request_queues (virtio 1.2, 5.11.4)."""


CONNECTING: Final = frozenset({DeviceType.NET})
"""Those whose connection QEMU must have made itself, by a name."""

NET_CONFIG: Final = struct.Struct("<6sHHH")
"""struct virtio_net_config up to mtu: mac, status, max_virtqueue_pairs, mtu (5.1.4)."""
NET_F_CTRL_MAC_ADDR: Final = 1 << 23
"""The driver may change its address (5.1.3)."""


def escape_value(value: str) -> str:
    """A value for QEMU's ``key=value,...`` syntax, where a comma is written twice."""
    return value.replace(",", ",,")


def device_arguments(device: VirtioDevice, *, chardev: str, bus: str, vcpu_count: int) -> list[str]:
    """``-device``, and what goes with it, for `device`, whose type must be in `FRONT_ENDS`."""
    if device.device_id == DeviceType.NET:
        return _net_arguments(device, chardev=chardev, bus=bus, vcpu_count=vcpu_count)
    return ["-device", device_argument(device, chardev=chardev, bus=bus)]


def _net_arguments(device: VirtioDevice, *, chardev: str, bus: str, vcpu_count: int) -> list[str]:
    """A network device is in two parts: virtio-net in front of a vhost-user network.

    Configuration space and control queue are QEMU's own; of features it offers what both sides
    can. Linux uses a pair of queues for each CPU at most: more of them would be of no use.
    """
    mac, _, pairs, mtu = NET_CONFIG.unpack(device.read_config(0, NET_CONFIG.size))
    pairs = min(pairs, vcpu_count)
    network = f"net-{chardev}"
    words = [
        FRONT_ENDS[device.device_id],
        f"netdev={network}",
        f"bus={bus}",
        f"mac={mac.hex(':')}",
        f"host_mtu={mtu}",
        # An announcement is for a guest that was moved; ours are not.
        "guest_announce=off",
    ]
    if not device.features & NET_F_CTRL_MAC_ADDR:
        words.append("ctrl_mac_addr=off")
    several = ""
    if pairs > 1:
        words.append("mq=on")
        several = f",queues={pairs}"
    return [
        "-netdev",
        f"vhost-user,id={network},chardev={chardev}{several}",
        "-device",
        ",".join(words),
    ]


def device_argument(device: VirtioDevice, *, chardev: str, bus: str) -> str:
    """The value of ``-device`` for a device that is one front end."""
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
