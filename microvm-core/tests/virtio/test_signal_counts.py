"""What transports count: a ring that woke the device, an interrupt that it raised."""

import trio
import trio.testing

from microvm.testing.mmio_bench import UpperDevice, served
from microvm.testing.mmio_driver import on_cpu


async def test_a_request_is_a_notification_and_an_interrupt() -> None:
    async with served(UpperDevice()) as bench:
        queue = bench.queues[0]
        await on_cpu(bench.driver.initialize, [queue.layout])
        await bench.device.until("run", 1)
        await trio.testing.wait_all_tasks_blocked()
        queue.add([b"abc"], [64])
        await on_cpu(bench.driver.notify, 0)
        await bench.irq.wait()
        assert dict(bench.transport.counts.as_mapping()) == {"notifications": 1, "interrupts": 1}
        # A second ring without anything to do wakes the device, and interrupts nobody.
        await on_cpu(bench.driver.notify, 0)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert dict(bench.transport.counts.as_mapping()) == {"notifications": 2, "interrupts": 1}


async def test_what_a_run_finds_when_it_begins_is_no_notification() -> None:
    async with served(UpperDevice()) as bench:
        await on_cpu(bench.driver.initialize, [bench.queues[0].layout])
        await bench.device.until("run", 1)
        await trio.testing.wait_all_tasks_blocked()
        assert dict(bench.transport.counts.as_mapping()) == {"notifications": 0, "interrupts": 0}
