"""A guest's balloon driver on real memory, and how much of that the host has left."""

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from microvm.memory import GuestMemory
from microvm.testing.queue_driver import GuestHeap, QueueDriver, activation
from microvm.virtio.features import RING_FEATURES
from microvm_devices.balloon import plugin
from microvm_devices.balloon.device import BalloonDevice

PAGE = 4096
MIB = 1 << 20
MEMORY_MIB = 64
RINGS_MIB = 4
"""Of the bottom of guest memory, where the double has its rings and buffers."""
STATS, OOM, POISON, REPORTING = 2, 4, 16, 32


def device(**options: object) -> BalloonDevice:
    made = plugin.create(options)
    assert isinstance(made, BalloonDevice)
    return made


class Driver:
    """A guest's balloon driver."""

    def __init__(
        self,
        balloon: BalloonDevice,
        *,
        features: int | None = None,
        memory: GuestMemory | None = None,
    ) -> None:
        self.balloon = balloon
        self.features = balloon.features if features is None else features
        self.memory = memory or GuestMemory.anonymous(MEMORY_MIB * MIB)
        heap = GuestHeap(PAGE, RINGS_MIB * MIB)
        count = 2 + bool(self.features & STATS) + bool(self.features & REPORTING)
        self.queues = [QueueDriver(self.memory, heap=heap, size=64) for _ in range(count)]
        self.inflate, self.deflate = self.queues[:2]
        self.config_changes = 0

    @asynccontextmanager
    async def driving(self) -> AsyncIterator[None]:
        self.balloon.reset()
        active = activation(
            *self.queues,
            features=RING_FEATURES | self.features,
            config_changed=self._config_changed,
        )
        async with self.balloon.lifespan(), trio.open_nursery() as nursery:
            nursery.start_soon(self.balloon.run, active)
            yield
            nursery.cancel_scope.cancel()

    def _config_changed(self) -> None:
        self.config_changes += 1

    async def give(self, pfns: Sequence[int]) -> None:
        for begin in range(0, len(pfns), 256):
            part = pfns[begin : begin + 256]
            await self.inflate.ask([struct.pack(f"<{len(part)}I", *part)])

    def fill(self) -> None:
        self.memory.write(RINGS_MIB * MIB, b"\xaa" * ((MEMORY_MIB - RINGS_MIB) * MIB))

    def rss_mib(self) -> int:
        """What the host really has of the guest's memory, by /proc/self/smaps."""
        import ctypes

        view = self.memory.regions[0].view
        begin = ctypes.addressof(ctypes.c_char.from_buffer(view))
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        rss = 0
        for line in lines:
            head = line.split(" ", 1)[0]
            if "-" in head and not head.endswith(":"):
                low, high = (int(part, 16) for part in head.split("-"))
                inside = begin <= low and high <= begin + len(view)
            elif line.startswith("Rss:") and inside:
                rss += int(line.split()[1]) * 1024
        return rss // MIB
