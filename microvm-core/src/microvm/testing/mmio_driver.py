"""The guest's half of virtio-mmio: what a driver does to a device's registers, step by step.

For tests of devices and of the transport, without a hypervisor. A step may wait for the device's
side (a reset does), so call it from another thread than trio's: `await on_cpu(driver.reset)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import trio

from microvm.virtio.features import RING_FEATURES
from microvm.virtio.mmio import registers

if TYPE_CHECKING:
    from microvm.abc import BusDevice
    from microvm.virtio.queue import QueueLayout

T = TypeVar("T")


async def on_cpu(step: Callable[..., T], *arguments: object) -> T:
    """Have a driver's step done on a thread of its own, as a vCPU would."""
    return await trio.to_thread.run_sync(step, *arguments)


class MmioDriver:
    """A driver at one device's registers.

    Args:
        device: The registers, such as a `VirtioMmioTransport`.
    """

    def __init__(self, device: BusDevice) -> None:
        self._device = device

    def read(self, register: int) -> int:
        """Read a register of 32 bits."""
        return self._device.read(register, 4)

    def write(self, register: int, value: int) -> None:
        """Write a register of 32 bits."""
        self._device.write(register, 4, value)

    @property
    def status(self) -> int:
        """The Status register; assigning writes it."""
        return self.read(registers.STATUS)

    @status.setter
    def status(self, value: int) -> None:
        self.write(registers.STATUS, value)

    @property
    def offered(self) -> int:
        """The features that the device offers."""
        return self._read_halves(registers.DEVICE_FEATURES_SEL, registers.DEVICE_FEATURES)

    def accept(self, features: int) -> None:
        """Write what the driver wants of the features."""
        for half in (0, 1):
            self.write(registers.DRIVER_FEATURES_SEL, half)
            self.write(registers.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)

    def reset(self) -> None:
        """Write 0 to Status: returns when the device is quiet."""
        self.status = 0

    def negotiate(self, features: int = RING_FEATURES) -> int:
        """From reset to FEATURES_OK (3.1.1, steps 1 to 6); returns the status read back."""
        self.reset()
        self.status = 1
        self.status = 3
        self.accept(features)
        self.status = 11
        return self.status

    def set_queue(self, index: int, layout: QueueLayout) -> None:
        """Say where a queue is, and make it ready (4.2.3.2 Virtqueue Configuration)."""
        self.write(registers.QUEUE_SEL, index)
        self.write(registers.QUEUE_NUM, layout.size)
        for low, high, address in (
            (registers.QUEUE_DESC_LOW, registers.QUEUE_DESC_HIGH, layout.desc),
            (registers.QUEUE_DRIVER_LOW, registers.QUEUE_DRIVER_HIGH, layout.avail),
            (registers.QUEUE_DEVICE_LOW, registers.QUEUE_DEVICE_HIGH, layout.used),
        ):
            self.write(low, address & 0xFFFF_FFFF)
            self.write(high, address >> 32)
        self.write(registers.QUEUE_READY, 1)

    def initialize(self, queues: Sequence[QueueLayout], features: int = RING_FEATURES) -> None:
        """From reset to DRIVER_OK."""
        self.negotiate(features)
        for index, layout in enumerate(queues):
            self.set_queue(index, layout)
        self.status = 15

    def notify(self, queue: int) -> None:
        """Ring a queue's doorbell by a store that the hypervisor did not take."""
        self.write(registers.QUEUE_NOTIFY, queue)

    def take_interrupt(self) -> int:
        """Read the interrupt status and acknowledge all of it."""
        status = self.read(registers.INTERRUPT_STATUS)
        self.write(registers.INTERRUPT_ACK, status)
        return status

    def _read_halves(self, selector: int, register: int) -> int:
        value = 0
        for half in (0, 1):
            self.write(selector, half)
            value |= self.read(register) << 32 * half
        return value
