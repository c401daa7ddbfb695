"""Feature bits that are not a device type's own, by their names in the standard.

virtio 1.2, 6 Reserved Feature Bits; the ring's are in 2.7 Split Virtqueues. Bits 0 to 23 and 50
up belong to the device type (2.2 Feature Bits).
"""

from __future__ import annotations

from typing import Final

NOTIFY_ON_EMPTY: Final = 1 << 24
ANY_LAYOUT: Final = 1 << 27
"""These two are legacy (6.3): a driver of version 1 gains nothing from them."""
RING_INDIRECT_DESC: Final = 1 << 28
"""A descriptor may refer to a table of descriptors (2.7.5.3 Indirect Descriptors)."""
RING_EVENT_IDX: Final = 1 << 29
"""used_event and avail_event say when to notify (2.7.7, 2.7.10)."""
VERSION_1: Final = 1 << 32
"""The driver follows version 1 of the standard, and not what came before it."""
ACCESS_PLATFORM: Final = 1 << 33
"""Addresses in descriptors may be translated (an IOMMU); we have none and never offer it."""
RING_PACKED: Final = 1 << 34
"""Packed virtqueues (2.8); never offered."""
IN_ORDER: Final = 1 << 35
"""The device uses buffers in the order in which they were offered."""
ORDER_PLATFORM: Final = 1 << 36
"""The driver orders its memory accesses for a device that is not a CPU's neighbour."""
SR_IOV: Final = 1 << 37
NOTIFICATION_DATA: Final = 1 << 38
NOTIF_CONFIG_DATA: Final = 1 << 39
RING_RESET: Final = 1 << 40
"""One queue can be reset by itself (2.6.1 Virtqueue Reset)."""

RING_FEATURES: Final = VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX
"""What our rings can do: a transport offers these beside the device's own."""

DEVICE_TYPE_MASK: Final = ((1 << 24) - 1) | (((1 << 14) - 1) << 50)
"""The bits that a device type may define: 0 to 23 and 50 to 63."""
