"""The same device behind each transport: it can't tell which, and neither can its driver."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

from microvm.testing.mmio_bench import served
from microvm.testing.mmio_driver import on_cpu
from microvm.testing.vhost_user_frontend import front_end
from microvm.testing.virtio_contract.attack import DeviceUnderTest
from microvm.testing.virtio_contract.hostile import HostileDriver
from microvm.testing.virtio_contract.rig import play
from microvm.virtio.features import RING_FEATURES
from microvm.virtio.status import DeviceStatus

if TYPE_CHECKING:
    from microvm.testing.queue_driver import QueueDriver, UsedBuffer

TIMES = 3


class BothTransports(HostileDriver):
    """See `VirtioDeviceContract`, which authors subclass."""

    def test_it_serves_a_driver_over_virtio_mmio_before_and_after_a_reset_and_a_pause(self) -> None:
        self._needs_no_preparation()

        async def main() -> None:
            device = self.device()
            request = self.request()
            async with device.lifespan(), served(device) as bench:
                queue = bench.queues[request.queue]
                for _ in range(2):
                    for driver in bench.queues:
                        driver.restart()
                    layouts = [driver.layout for driver in bench.queues]
                    features = self.features() | RING_FEATURES
                    await on_cpu(bench.driver.initialize, layouts, features)
                    for _ in range(TIMES):
                        queue.add(request.readable, request.writable)
                        await on_cpu(bench.driver.notify, request.queue)
                        await _used(queue)
                    await bench.transport.quiesce()
                    queue.add(request.readable, request.writable)
                    bench.transport.resume()
                    await _used(queue)
                    assert not bench.driver.status & DeviceStatus.NEEDS_RESET
                    await on_cpu(bench.driver.reset)

        play(main)

    @pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's")
    def test_it_serves_a_driver_over_vhost_user_before_and_after_a_pause_and_a_reset(self) -> None:
        self._needs_no_preparation()

        async def main() -> None:
            device = self.device()
            request = self.request()
            async with (
                device.lifespan(),
                front_end(device, queues=len(device.queue_max_sizes)) as vmm,
            ):
                vmm.features = self.features() | RING_FEATURES
                for _ in range(2):
                    vmm.reset()
                    for _ in range(TIMES):
                        await vmm.start()
                        queue = vmm.queues[request.queue]
                        queue.add(request.readable, request.writable)
                        queue.kick()
                        await _used(queue)
                        await vmm.stop()

        play(main)

    def _needs_no_preparation(self) -> None:
        if type(self).prepare is not DeviceUnderTest.prepare:
            pytest.skip("The driver prepares itself by a rig, and there is none here.")


async def _used(queue: QueueDriver) -> UsedBuffer:
    """The one buffer that comes back."""
    while not (used := queue.used()):  # noqa: ASYNC110 - it is in memory that it comes
        await trio.sleep(0.001)
    (buffer,) = used
    return buffer
