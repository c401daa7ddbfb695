"""`BlkDevice`: virtio-blk (virtio 1.2, 5.2 Block Device) as a transport sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm.abc import VirtioDevice
from microvm.virtio.ids import DeviceType
from microvm.virtio.rate_limit import RateLimiter
from microvm_devices.blk import layout, limits
from microvm_devices.blk.config_space import config_space
from microvm_devices.blk.counters import BlkCounters
from microvm_devices.blk.disk import Disk, FlushLatch
from microvm_devices.blk.durability import WriteMode

if TYPE_CHECKING:
    from microvm.abc import Activation
    from microvm.config import DriveConfig

OpenDisk = Callable[["DriveConfig"], Disk]


class BlkDevice(VirtioDevice):
    """A disk of the guest. Everything is for the trio thread, but for the configuration space.

    The drive is opened and locked by `lifespan`, and flushed and given back when that is left.

    Args:
        config: The drive.
        open_disk: Opens it.
    """

    def __init__(self, config: DriveConfig, open_disk: OpenDisk) -> None:
        self._config = config
        self._open_disk = open_disk
        self._mode = WriteMode(configured=config.writeback and not config.read_only)
        self._limiter = RateLimiter(config.rate_limit)
        self._counters = BlkCounters()
        self._disk: Disk | None = None
        self._latch: FlushLatch | None = None
        self._config_space = b""

    @property
    def device_id(self) -> int:
        """2."""
        return DeviceType.BLOCK

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        """As many request queues as the drive has."""
        return (limits.QUEUE_SIZE,) * self._config.queues

    @property
    def features(self) -> int:
        """Flushes wherever there is something to flush (5.2.5.2: a device should offer it)."""
        features = layout.F_SEG_MAX | layout.F_BLK_SIZE | layout.F_TOPOLOGY
        if self._config.queues > 1:
            features |= layout.F_MQ
        if self._config.read_only:
            return features | layout.F_RO
        features |= layout.F_FLUSH | layout.F_DISCARD | layout.F_WRITE_ZEROES
        return features | (layout.F_CONFIG_WCE if self._config.writeback else 0)

    def read_config(self, offset: int, length: int) -> bytes:
        """The configuration space; by any thread."""
        if offset < 0:
            return bytes(length)
        space = bytearray(self._config_space)
        if space:
            space[layout.WRITEBACK_OFFSET] = self._mode.writeback
        return bytes(space[offset : offset + length].ljust(length, b"\0"))

    def write_config(self, offset: int, data: bytes) -> None:
        """The field `writeback`; all others are read-only. By any thread."""
        if offset <= layout.WRITEBACK_OFFSET < offset + len(data):
            self._mode.write(data[layout.WRITEBACK_OFFSET - offset])

    def counters(self) -> Mapping[str, int]:
        """See `BlkCounters`."""
        return self._counters.as_mapping()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Have the drive open.

        Raises:
            ImageError: it can't be used, or somebody else uses it.
        """
        disk = self._open_disk(self._config)
        try:
            self._disk, self._latch = disk, FlushLatch(disk)
            self._config_space = config_space(
                size=disk.size, queues=self._config.queues, read_only=self._config.read_only
            )
            yield
        finally:
            self._disk = self._latch = None
            disk.close()

    async def run(self, activation: Activation) -> None:
        """As `VirtioDevice.run`. When it ends, all that was written is made stable."""
        import trio

        from microvm_devices.blk.executor import Executor
        from microvm_devices.blk.request_queue import RequestQueue

        disk, latch = self._disk, self._latch
        assert disk is not None, "A run is within the lifespan."
        assert latch is not None
        mode = self._mode
        mode.begin(activation.features)
        executor = Executor(disk, latch, (self._config.serial or "").encode(), lambda: mode.through)
        try:
            async with trio.open_nursery() as nursery:
                for active in activation.queues:
                    queue = RequestQueue(
                        active,
                        executor,
                        size=disk.size,
                        read_only=self._config.read_only,
                        features=activation.features,
                        limiter=self._limiter,
                        counters=self._counters,
                    )
                    nursery.start_soon(queue.serve)
                await trio.sleep_forever()
        finally:
            mode.end()
            if latch.unsettled:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(settle, latch, disk.name)

    def reset(self) -> None:
        """The driver begins anew."""
        self._mode.reset()


def settle(latch: FlushLatch, name: str) -> None:
    """Make stable what is not; there is nobody left to tell an error to but the log."""
    try:
        latch.flush()
    except OSError as error:
        import logging

        logging.getLogger(__name__).error(
            "%s: what the guest has written last may be lost, since flushing it failed: %s",
            name,
            error.strerror,
        )
