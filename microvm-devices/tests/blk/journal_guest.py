"""A guest that keeps books of what it may rely on, for power cuts. See `test_blk_crash`."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack

import attrs
import trio.testing

from microvm_devices.blk import layout
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import F_CONFIG_WCE, F_FLUSH, S_IOERR, S_OK
from microvm_devices.blk.testing import GuestBlk, Ledger, RecordingDisk, pack_segments

QUEUES = 2
"""A flush on one covers what was complete on both."""

Action = tuple[str, int, int]


@attrs.define
class UnderWay:
    versions: Mapping[int, int]
    """Of a flush: what it makes stable. Of anything else: what it writes."""
    is_flush: bool
    through: bool
    """Whether the answer itself is the promise."""


class JournalGuest:
    """A driver that keeps books of what it may rely on, by the standard's words (5.2.6.2)."""

    def __init__(self, device: BlkDevice, disk: RecordingDisk, features: int) -> None:
        self.device = device
        self.disk = disk
        self.features = features
        self.ledger = Ledger(disk)
        self.blk = GuestBlk(features=features, queues=QUEUES, queue_size=256, mem_size=1 << 22)
        self.lock = threading.RLock()
        self.under_way: dict[tuple[int, int], UnderWay] = {}
        """By queue and head."""
        self.complete: dict[int, int] = {}
        self.serial = 0
        self.field = 1
        disk.before = self.look

    @property
    def through(self) -> bool:
        if self.features & F_CONFIG_WCE:
            return self.field == 0
        return not self.features & F_FLUSH

    def look(self) -> None:
        """Take what was answered, as a driver on another CPU could at this moment."""
        with self.lock:
            for queue in range(QUEUES):
                for head, answer in self.blk.answered(queue).items():
                    self.take(self.under_way.pop((queue, head)), answer.status)

    def take(self, entry: UnderWay, status: int) -> None:
        if status != S_OK:
            assert status == S_IOERR
            assert self.disk.has_failed
            return  # it may be there or not, now or later
        if not entry.is_flush:
            self.complete.update(entry.versions)
        if entry.is_flush or entry.through:
            self.ledger.promised(entry.versions)

    def ask(self, type_: int, data: bytes, sector: int, contents: Sequence[bytes | None]) -> None:
        sectors = dict(enumerate(contents, sector))
        with self.lock:
            self.look()
            if any(sectors.keys() & e.versions.keys() for e in self.writes_under_way()):
                return
            entry = UnderWay(self.ledger.ask(sectors), False, self.through)
            queue = (sector ^ len(contents)) % QUEUES  # both have some of each
            self.under_way[queue, self.blk.submit(type_, sector, data, queue=queue)] = entry

    def writes_under_way(self) -> Iterator[UnderWay]:
        return (entry for entry in self.under_way.values() if not entry.is_flush)

    # --- actions ---------------------------------------------------------------------------

    def write(self, sector: int, count: int) -> None:
        self.serial += 1
        contents = [b"%6d.%-6d" % (self.serial, at) * 32 for at in range(count)]
        contents = [content.ljust(512, b".")[:512] for content in contents]
        self.ask(layout.T_OUT, b"".join(contents), sector, contents)

    def zero(self, sector: int, count: int) -> None:
        segments = pack_segments((sector, count, count & 1))
        self.ask(layout.T_WRITE_ZEROES, segments, sector, [bytes(512)] * count)

    def discard(self, sector: int, count: int) -> None:
        segments = pack_segments((sector, count, 0))
        self.ask(layout.T_DISCARD, segments, sector, [None] * count)

    def flush(self, sector: int, count: int) -> None:
        if not self.features & F_FLUSH:
            return
        with self.lock:
            self.look()
            entry = UnderWay(dict(self.complete), True, False)
            queue = (sector ^ count) % QUEUES
            self.under_way[queue, self.blk.submit(layout.T_FLUSH, queue=queue)] = entry

    def cache_mode(self, sector: int, count: int) -> None:
        with self.lock:
            self.look()
            if sector & 1 or not self.features & F_CONFIG_WCE:
                for entry in self.writes_under_way():
                    entry.through = entry.through and not self.features & F_CONFIG_WCE
            self.field = sector & 1
            self.device.write_config(layout.WRITEBACK_OFFSET, bytes([self.field]))

    async def settle(self) -> None:
        while True:
            self.look()
            if not self.under_way:
                return
            queue = self.blk.queues[next(iter(self.under_way))[0]]
            if not queue.want_interrupt():
                await queue.irq.wait()

    async def live(self, actions: Sequence[Action]) -> None:
        async with self.device.lifespan():
            rest = list(actions)[::-1]
            fresh = True
            while rest:
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(self.blk.running(self.device, fresh=fresh))
                    # The standard's rule for CONFIG_WCE holds from DRIVER_OK on.
                    await trio.testing.wait_all_tasks_blocked()
                    if fresh:
                        # A driver reads the mode once; from then on it knows what it has written.
                        (self.field,) = self.device.read_config(layout.WRITEBACK_OFFSET, 1)
                    while rest:
                        name, sector, count = rest.pop()
                        if name in {"reset", "pause"}:
                            fresh = name == "reset"
                            break
                        if name == "settle":
                            await self.settle()
                        else:
                            getattr(self, name)(sector, count)
                    else:
                        await self.settle()
                self.look()
                if fresh:
                    self.under_way.clear()
