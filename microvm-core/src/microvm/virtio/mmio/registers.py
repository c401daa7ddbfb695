"""The registers of a virtio-mmio device, by their names in the standard.

virtio 1.2, 4.2.2 MMIO Device Register Layout.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = 0x7472_6976
"""``virt``."""
VERSION: Final = 2
VENDOR_ID: Final = 0

# Offsets:
MAGIC_VALUE: Final = 0x000
VERSION_REGISTER: Final = 0x004
DEVICE_ID: Final = 0x008
VENDOR_ID_REGISTER: Final = 0x00C
DEVICE_FEATURES: Final = 0x010
DEVICE_FEATURES_SEL: Final = 0x014
DRIVER_FEATURES: Final = 0x020
DRIVER_FEATURES_SEL: Final = 0x024
QUEUE_SEL: Final = 0x030
QUEUE_NUM_MAX: Final = 0x034
QUEUE_NUM: Final = 0x038
QUEUE_READY: Final = 0x044
QUEUE_NOTIFY: Final = 0x050
INTERRUPT_STATUS: Final = 0x060
INTERRUPT_ACK: Final = 0x064
STATUS: Final = 0x070
QUEUE_DESC_LOW: Final = 0x080
QUEUE_DESC_HIGH: Final = 0x084
QUEUE_DRIVER_LOW: Final = 0x090
QUEUE_DRIVER_HIGH: Final = 0x094
QUEUE_DEVICE_LOW: Final = 0x0A0
QUEUE_DEVICE_HIGH: Final = 0x0A4
SHM_LEN_LOW: Final = 0x0B0
SHM_LEN_HIGH: Final = 0x0B4
SHM_BASE_LOW: Final = 0x0B8
SHM_BASE_HIGH: Final = 0x0BC
CONFIG_GENERATION: Final = 0x0FC
CONFIG: Final = 0x100
"""The device configuration space, from here on: accesses of any width."""

INTERRUPT_USED_BUFFER: Final = 1
INTERRUPT_CONFIG_CHANGE: Final = 2
