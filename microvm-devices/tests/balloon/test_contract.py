"""virtio-balloon keeps the contract of every device: rows 17 to 34, and what else stands there."""

import struct

from microvm.abc import VirtioDevice
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm_devices.balloon import plugin

SPARE_PAGES = struct.pack("<II", 238, 239)
"""There in every memory that the contract has, and nothing else is."""


class TestInflating(VirtioDeviceContract):
    def device(self) -> VirtioDevice:
        return plugin.create({})

    def request(self) -> Request:
        return Request(queue=0, readable=(SPARE_PAGES,))


class TestReporting(TestInflating):
    def request(self) -> Request:
        # Less than a page: what is reported whole is zeros afterwards, which is no answer.
        return Request(queue=3, writable=(2048,))
