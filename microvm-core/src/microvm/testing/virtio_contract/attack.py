"""What every test of the contract stands on: the author's device, and ways to run and attack it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm.testing.virtio_contract.bounds import bounded_growth
from microvm.testing.virtio_contract.rig import Request, Rig, play
from microvm.virtio.features import RING_FEATURES

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice
    from microvm.testing.queue_driver import QueueDriver


class DeviceUnderTest(ABC):
    """What an author says, and how tests have it. See `VirtioDeviceContract`."""

    @abstractmethod
    def device(self) -> VirtioDevice:
        """A new device, without a limit on its rate."""

    @abstractmethod
    def request(self) -> Request:
        """A request that the device answers by itself, in order, every time that it is put."""

    def features(self) -> int:
        """What the driver accepts of the device's own features."""
        return self.device().features

    async def prepare(self, rig: Rig) -> None:  # noqa: B027 - most drivers do nothing here
        """Whatever a driver does before its first request; the device runs. Nothing by default."""

    # --- helpers ---------------------------------------------------------------------------------

    def rig(self, features: int | None = None, *, without: int = 0) -> Rig:
        """A new device with its drivers; by default they accept everything."""
        accepted = self.features() if features is None else features
        return Rig(self.device(), (accepted | RING_FEATURES) & ~without)

    async def prepared(self, rig: Rig) -> None:
        """Run the device for as long as `prepare` takes; then it is as after a pause."""
        async with rig.running():
            await self.settle(rig)

    async def settle(self, rig: Rig) -> None:
        """`prepare`, while the device runs, and take back what that has used."""
        await self.prepare(rig)
        await rig.rest()
        for driver in rig.queues:
            driver.used_elements()

    @asynccontextmanager
    async def served(self, rig: Rig) -> AsyncIterator[None]:
        """While the block lasts, the device serves a driver that has prepared itself."""
        async with rig.device.lifespan():
            rig.device.reset()
            async with rig.running():
                await self.settle(rig)
                yield

    async def ask(self, rig: Rig, times: int = 1) -> None:
        """Put the request so many times, each when the one before was answered."""
        request = self.request()
        rig.device.reset()
        segments = rig.segments(request)
        async with rig.running():
            await self.settle(rig)
            for _ in range(times):
                rig.offer(request.queue, segments)
                assert await rig.answered(request.queue), "A request was not answered."

    def suffer(
        self,
        act: Callable[[Rig, QueueDriver, int], None],
        *,
        must_fail: bool,
        without: int = 0,
        max_growth_bytes: int | None = None,
    ) -> None:
        """Have a driver do something to each queue in turn, on a new device each time.

        Args:
            act: What it does; gets the rig, the driver and the queue's index.
            must_fail: Whether the standard forbids it.
            without: Features that the driver does not accept.
            max_growth_bytes: How much memory may be taken meanwhile, if that is measured. It makes
                all of it slow: for where the device gets to see a chain.
        """
        wanted = self.request().queue

        async def main() -> None:
            for queue in range(len(self.device().queue_max_sizes)):
                rig = self.rig(without=without)
                async with rig.device.lifespan():
                    rig.device.reset()
                    await self.prepared(rig)
                    act(rig, rig.queues[queue], queue)
                    rig.queues[queue].doorbell.ring()
                    with bounded_growth(max_growth_bytes):
                        error = await rig.outcome()
                    assert all(
                        count <= driver.size
                        for count, driver in zip(rig.in_flight, rig.queues, strict=True)
                    )
                    if must_fail and queue == wanted:
                        assert error is not None, "The driver broke a rule, and nobody said so."

        play(main)

    def forbidden(
        self,
        *descriptors: tuple[int, int, int, int],
        without: int = 0,
        max_growth_bytes: int | None = None,
    ) -> None:
        """Offer a chain of these raw descriptors (addr, len, flags, next), which must not be."""

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            for index, descriptor in enumerate(descriptors):
                driver.write_descriptor(index, *descriptor)
            driver.offer(0)

        self.suffer(act, must_fail=True, without=without, max_growth_bytes=max_growth_bytes)

    def forbidden_table(
        self, make: Callable[[int], tuple[bytes, tuple[int, int, int, int]]], *, without: int = 0
    ) -> None:
        """Offer an indirect descriptor that must not be.

        Args:
            make: From the address of a free block, what to write there and the descriptor.
            without: Features that the driver does not accept.
        """

        def act(rig: Rig, driver: QueueDriver, queue: int) -> None:
            address, _ = rig.heap.take(65536)
            data, descriptor = make(address)
            rig.memory.write(address, data)
            driver.write_descriptor(0, *descriptor)
            driver.offer(0)

        self.suffer(act, must_fail=True, without=without)
