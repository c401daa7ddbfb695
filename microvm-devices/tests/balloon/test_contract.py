"""virtio-balloon keeps the contract of every device: rows 17 to 34, and what else stands there."""

import struct

from microvm.abc import VirtioDevice
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm_devices.balloon import plugin

LAST_PAGES = struct.pack("<II", 4094, 4095)
"""Of the rig's 16 MiB: nothing else is there."""


class TestInflating(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return plugin.create({})

    def request(self) -> Request:
        return Request(queue=0, readable=(LAST_PAGES,))


class TestReporting(TestInflating):
    def request(self) -> Request:
        # Less than a page: what is reported whole is zeros afterwards, which is no answer.
        return Request(queue=3, writable=(2048,))
