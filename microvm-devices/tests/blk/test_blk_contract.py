"""What every virtio device must do: on the trio thread, and by way of the queue's own."""

import struct

from microvm.config import DriveConfig
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import HEADER, T_IN, T_OUT, T_WRITE_ZEROES
from microvm_devices.blk.testing import MemoryDisk


class TestReadsFromTheCache(VirtioDeviceContract):
    def device(self) -> BlkDevice:
        return BlkDevice(DriveConfig(path="/a/disk"), MemoryDisk(cached=True).opener())

    def request(self) -> Request:
        return Request(queue=0, readable=(HEADER.pack(T_IN, 0, 3),), writable=(512, 1))


class TestWritesOnSeveralQueues(VirtioDeviceContract):
    def device(self) -> BlkDevice:
        return BlkDevice(DriveConfig(path="/a/disk", queues=3), MemoryDisk().opener())

    def request(self) -> Request:
        return Request(queue=1, readable=(HEADER.pack(T_OUT, 0, 3), b"x" * 512), writable=(1,))


class TestZeros(VirtioDeviceContract):
    def device(self) -> BlkDevice:
        return BlkDevice(DriveConfig(path="/a/disk"), MemoryDisk().opener())

    def request(self) -> Request:
        segment = struct.pack("<QII", 5, 2, 1)
        header = HEADER.pack(T_WRITE_ZEROES, 0, 0)
        return Request(queue=0, readable=(header, segment), writable=(1,))
