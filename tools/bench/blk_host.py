"""The block device without a guest: requests a second of a driver double over shared memory.

The driver is Python too and on the same thread, so its own time is measured apart, on a device that
answers and does nothing else, and taken off. What is left is ours: the queue, the request, the
system calls, the hop to the thread.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from microvm.abc import Activation, VirtioDevice
from microvm.config import DriveConfig
from microvm.testing.queue_driver import QueueDriver, activation
from microvm.virtio.fence import fence
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import HEADER, T_IN, T_OUT
from microvm_devices.blk.raw_disk import open_raw_disk
from microvm_devices.blk.testing.guest import ALL_FEATURES
from tools.bench.stats import summary

MIB = 1024 * 1024
DISK_BYTES = 256 * MIB


class Idle(VirtioDevice):
    """Answers every chain with nothing: what the driver and the ring cost by themselves."""

    device_id = 2
    queue_max_sizes = (256,)

    async def run(self, active: Activation) -> None:
        queue, doorbell = active.queues[0].queue, active.queues[0].doorbell
        while True:
            queue.disable_notification()
            for chain in queue.pop_all():
                queue.add_used(chain.head, 0)
            active.queues[0].notify()
            if not queue.enable_notification():
                await doorbell.wait()


class Used:
    """The used ring of a driver whose descriptors stay as they are."""

    def __init__(self, driver: QueueDriver) -> None:
        layout = driver.layout
        self._index = driver.memory.slice(layout.used, 4).cast("H")
        self._ring = driver.memory.slice(layout.used + 4, 8 * layout.size).cast("I")
        self._driver = driver
        self._seen = 0

    def take(self) -> list[int]:
        end, size = self._index[1], self._driver.size
        count = (end - self._seen) & 0xFFFF
        heads = [self._ring[2 * (self._seen + n & size - 1)] for n in range(count)]
        self._seen = end
        return heads

    def want_interrupt(self) -> bool:
        """Ask for one at the next used chain; False if there is one already."""
        self._driver.used_event = self._seen
        fence()
        return self._index[1] == self._seen


async def per_request_us(
    device: VirtioDevice, type_: int, size: int, depth: int, count: int
) -> float:
    """Microseconds a request, `depth` of them under way at any time, at scattered offsets."""
    driver = QueueDriver(size=256, features=ALL_FEATURES)
    async with device.lifespan(), trio.open_nursery() as nursery:
        nursery.start_soon(device.run, activation(driver))
        buffers = [driver.heap.take(size)[0] for _ in range(depth)]
        header, status = driver.heap.take(16 * depth)[0], driver.heap.take(16 * depth)[0]
        used = Used(driver)
        sectors = size // 512
        places = DISK_BYTES // size
        issued = answered = 0

        def offer(slot: int) -> None:
            nonlocal issued
            sector = issued * 7919 % places * sectors
            driver.memory.write(header + 16 * slot, HEADER.pack(type_, 0, sector))
            driver.offer(3 * slot)
            issued += 1

        for slot in range(depth):
            first = 3 * slot
            write = 2 if type_ == T_IN else 0
            driver.write_descriptor(first, header + 16 * slot, 16, 1, first + 1)
            driver.write_descriptor(first + 1, buffers[slot], size, 1 | write, first + 2)
            driver.write_descriptor(first + 2, status + 16 * slot, 1, 2)
        start = time.perf_counter()
        for slot in range(depth):
            offer(slot)
        driver.kick()
        while answered < count:
            heads = used.take()
            if not heads:
                if used.want_interrupt():
                    await driver.irq.wait()
                continue
            answered += len(heads)
            for head in heads:
                offer(head // 3)
            driver.kick()
        elapsed = time.perf_counter() - start
        nursery.cancel_scope.cancel()
    return elapsed / answered * 1e6


def scattered(path: Path, type_: int, size: int, depth: int, count: int, rounds: int) -> Any:
    samples, idle = [], []
    for _ in range(rounds):
        device = BlkDevice(DriveConfig(path=path), open_raw_disk)
        samples.append(trio.run(per_request_us, device, type_, size, depth, count))
        idle.append(trio.run(per_request_us, Idle(), type_, size, depth, count))
    us = min(samples)
    return {
        "request_us": summary(samples),
        "driver_and_ring_us": summary(idle),
        "device_us": round(us - min(idle), 2),
        "requests_s": round(1e6 / us),
        "mib_s": round(size / MIB * 1e6 / us, 1),
    }


def blk_host(rounds: int, folder: str | None = None) -> dict[str, Any]:
    """Files in the page cache: of the host's disk nothing is measured."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        path = Path(file.name)
        for _ in range(DISK_BYTES // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        report: dict[str, Any] = {}
        for name, type_ in (("read", T_IN), ("write", T_OUT)):
            for depth, count in ((1, 3000), (32, 20000)):
                report[f"{name}_4k_depth_{depth}"] = scattered(
                    path, type_, 4096, depth, count, rounds
                )
            report[f"{name}_1m_depth_4"] = scattered(path, type_, MIB, 4, 600, rounds)
        return report


def profile(type_: int = T_IN, depth: int = 32) -> None:
    """Print where the time goes: python -c 'from tools.bench.blk_host import profile; profile()'"""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(DISK_BYTES))
        file.flush()
        device = BlkDevice(DriveConfig(path=Path(file.name)), open_raw_disk)
        with cProfile.Profile() as profiler:
            trio.run(per_request_us, device, type_, 4096, depth, 20000)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
