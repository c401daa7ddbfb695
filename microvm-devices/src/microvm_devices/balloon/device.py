"""`BalloonDevice`: virtio-balloon as a transport sees it (virtio 1.2, 5.5).

The host asks for memory by a number in the configuration space; the guest's driver looks for pages
that it can do without and names them in the inflateq; we give them back to the host. They stay the
guest's: it may take a page again at any time, by the deflateq or by touching it, and finds zeros.
So no page that a guest names can hurt anybody but itself, and nothing has to be remembered of
those that it did. With free page reporting it names pages by itself, in buffers: each
device-writable one is a run of free memory.

Queue numbers. 5.5.2 gives each queue a number, and says that some of them exist only where their
feature is negotiated. Linux, and everybody else with it, numbers those that do exist without a gap:
without FREE_PAGE_HINT, which is not offered here, the reporting queue comes directly behind the
statistics. So does ours.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from microvm.abc import VirtioDevice
from microvm.errors import ConfigError, GuestError, GuestGone, QueueError
from microvm.virtio.chain import ChainReader
from microvm.virtio.ids import DeviceType
from microvm_devices.balloon.config import is_target
from microvm_devices.balloon.pages import PAGE_BYTES, PFN_BYTES, read_pfns, runs
from microvm_devices.balloon.statistics import MAX_STATS, STAT, parse_statistics

if TYPE_CHECKING:
    import trio

    from microvm.abc import Activation, ActiveQueue, Fact
    from microvm.memory import GuestMemory
    from microvm.virtio.chain import DescriptorChain
    from microvm_devices.balloon.config import BalloonConfig

VIRTIO_BALLOON_F_STATS_VQ: Final = 1 << 1
VIRTIO_BALLOON_F_DEFLATE_ON_OOM: Final = 1 << 2
VIRTIO_BALLOON_F_PAGE_POISON: Final = 1 << 4
VIRTIO_BALLOON_F_PAGE_REPORTING: Final = 1 << 5
"""5.5.3 Feature bits. MUST_TELL_HOST is not offered: there is nothing that we would do."""

QUEUE_SIZE: Final = 128
PFNS_AT_ONCE: Final = 4096
"""Page numbers sorted before other tasks have their turn: 2 ms."""
BYTES_AT_ONCE: Final = 64 << 20
"""Memory given back before they have it: 3 ms, if all of it was there."""
CALLS_AT_ONCE: Final = 512
"""The same in calls to the host, of which each takes 5 us, also for a single page: 3 ms."""
PAGES_PER_MIB: Final = (1 << 20) // PAGE_BYTES

_CONFIG: Final = struct.Struct("<IIII")
"""struct virtio_balloon_config: num_pages, actual, free_page_hint_cmd_id, poison_val (5.5.4)."""
_WRITABLE: Final = (range(4, 8), range(12, 16))
"""`actual` and `poison_val`, which are the driver's."""

_Work = Callable[["DescriptorChain", "GuestMemory"], Awaitable[None]]


class BalloonDevice(VirtioDevice):
    """Takes memory back from the guest. Everything but `write_config` is for the trio thread."""

    def __init__(self, config: BalloonConfig) -> None:
        self._config = config
        self._space = bytearray(_CONFIG.pack(config.target_mib * PAGES_PER_MIB, 0, 0, 0))
        self._activation: Activation | None = None
        self._target_untold = False
        self._statistics: Mapping[str, int] = {}
        self._wanted: trio.Event | None = None
        self._heard: trio.Event | None = None
        self._holding = False
        """Whether the driver's buffer for figures is with us."""
        self._over = False
        self._calls_in_turn = self._bytes_in_turn = 0
        """What was given back since other tasks had their turn, by all queues together."""
        self._requests = 0
        self._errors = 0
        self._inflated_bytes = 0
        self._reported_bytes = 0
        self._reclaimed_bytes = 0

    # --- the host's side -----------------------------------------------------------------

    @property
    def target_mib(self) -> int:
        """What the guest is asked to give back."""
        return int.from_bytes(self._space[0:4], "little") // PAGES_PER_MIB

    @property
    def actual_mib(self) -> int:
        """What the guest says it has given back."""
        return int.from_bytes(self._space[4:8], "little") // PAGES_PER_MIB

    def set_target_mib(self, mib: int) -> None:
        """Ask the guest to give so much back, and to take what it gave beyond that.

        The guest gives what it can spare, in its own time: see `actual_mib`.

        Raises:
            ConfigError: that is no size.
        """
        if not is_target(mib):
            raise ConfigError(
                f"A balloon of {mib!r} MiB can't be: a whole number from 0 on is one."
            )
        self._space[0:4] = (mib * PAGES_PER_MIB).to_bytes(4, "little")
        self._tell_target()

    def _tell_target(self) -> None:
        self._target_untold = self._activation is None
        if self._activation is not None:
            self._activation.config_changed()

    @property
    def statistics(self) -> Mapping[str, int]:
        """The guest's figures when it was last asked; empty before. They are its claims."""
        return self._statistics

    async def ask_statistics(self) -> Mapping[str, int]:
        """The guest's figures as they are now. Waits for its driver, however long it takes.

        Raises:
            GuestError: the driver gives none.
            GuestGone: the machine has ended.
        """
        import trio

        self._require_statistics()
        if self._heard is None:
            self._heard = trio.Event()
        heard = self._heard
        if self._wanted is not None:
            self._wanted.set()
        await heard.wait()
        self._require_statistics()
        return self._statistics

    async def command(self, what: str, arguments: Mapping[str, Any]) -> Mapping[str, Fact]:
        """As `VirtioDevice.command`.

        * ``target``: set it to ``mib``, if that is given; ``target_mib`` and ``actual_mib``.
        * ``statistics``: the guest's figures as they are now.
        """
        known = {"target": {"mib"}, "statistics": set[str]()}
        if what not in known:
            return await super().command(what, arguments)
        if unknown := arguments.keys() - known[what]:
            raise ConfigError(f"The balloon's {what!r} takes no {', '.join(sorted(unknown))}.")
        if what == "statistics":
            return dict(await self.ask_statistics())
        if "mib" in arguments:
            self.set_target_mib(arguments["mib"])
        return {"target_mib": self.target_mib, "actual_mib": self.actual_mib}

    def _require_statistics(self) -> None:
        if self._over:
            raise GuestGone("The balloon's machine has ended.")
        active = self._activation
        if active is not None and not active.features & VIRTIO_BALLOON_F_STATS_VQ:
            raise GuestError("The guest's balloon driver gives no statistics.")

    # --- VirtioDevice --------------------------------------------------------------------

    @property
    def device_id(self) -> int:
        """5."""
        return DeviceType.BALLOON

    @property
    def queue_max_sizes(self) -> Sequence[int]:
        """inflateq, deflateq, statsq and, where it is offered, reporting_vq; see the module."""
        return (QUEUE_SIZE,) * (4 if self._config.free_page_reporting else 3)

    @property
    def features(self) -> int:
        """Statistics always; what else the configuration allows."""
        features = VIRTIO_BALLOON_F_STATS_VQ
        if self._config.deflate_on_oom:
            features |= VIRTIO_BALLOON_F_DEFLATE_ON_OOM
        if self._config.free_page_reporting:
            # A Linux that poisons free pages reports them only to a device that knows of it.
            features |= VIRTIO_BALLOON_F_PAGE_REPORTING | VIRTIO_BALLOON_F_PAGE_POISON
        return features

    def read_config(self, offset: int, length: int) -> bytes:
        """The target, and what the driver has written."""
        if offset < 0:
            return bytes(length)
        return bytes(self._space[offset : offset + length]).ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """`actual` and `poison_val`; the rest is read-only. From any thread."""
        for position, value in enumerate(data[: len(self._space)], start=offset):
            if any(position in field for field in _WRITABLE):
                self._space[position] = value

    def counters(self) -> Mapping[str, int]:
        """As `VirtioDevice.counters`.

        ``inflated_bytes`` are what the guest has put into the balloon, ``reported_bytes`` what it
        told of as free, and ``reclaimed_bytes`` what of both went back to the host.
        """
        return {
            "requests": self._requests,
            "errors": self._errors,
            "inflated_bytes": self._inflated_bytes,
            "reported_bytes": self._reported_bytes,
            "reclaimed_bytes": self._reclaimed_bytes,
        }

    def reset(self) -> None:
        """The balloon is empty: the guest begins anew with all its memory."""
        self._space[4:16] = bytes(12)
        self._statistics = {}
        self._holding = False

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """At its end, nobody waits for figures any more."""
        try:
            yield
        finally:
            self._over = True
            self._tell_statistics()

    async def run(self, activation: Activation) -> None:
        """As `VirtioDevice.run`."""
        import trio

        self._activation = activation
        if self._target_untold:
            self._tell_target()
        memory = activation.memory
        serve: list[Callable[[ActiveQueue], Awaitable[None]]] = [
            lambda active: self._serve(active, memory, self._inflate),
            lambda active: self._serve(active, memory, self._deflate),
        ]
        if activation.features & VIRTIO_BALLOON_F_STATS_VQ:
            serve.append(self._serve_statistics)
        else:
            self._tell_statistics()
        if activation.features & VIRTIO_BALLOON_F_PAGE_REPORTING:
            serve.append(lambda active: self._serve(active, memory, self._report))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)  # also if the driver has set no queue up
                for one, active in zip(serve, activation.queues, strict=False):
                    nursery.start_soon(one, active)
        except* GuestError:
            self._errors += 1
            raise
        finally:
            self._activation = None

    # --- pages ---------------------------------------------------------------------------

    async def _serve(self, active: ActiveQueue, memory: GuestMemory, work: _Work) -> None:
        """Serve a queue, chain by chain, until cancelled."""
        import trio

        queue = active.queue
        while True:
            queue.disable_notification()
            for chain in queue.pop_all():
                await work(chain, memory)
                queue.add_used(chain.head, 0)
                self._requests += 1
                # A chain may be a table of descriptors that takes a while to walk.
                await trio.lowlevel.checkpoint()
            active.notify()
            await trio.lowlevel.checkpoint()
            if not queue.enable_notification():
                await active.doorbell.wait()

    async def _inflate(self, chain: DescriptorChain, memory: GuestMemory) -> None:
        """5.5.6.1: the driver has put pages into the balloon."""
        import trio

        pages = sum(len(region.view) for region in memory.regions) // PAGE_BYTES
        if chain.readable_len > pages * PFN_BYTES:
            raise QueueError(
                f"The driver gives {chain.readable_len // PFN_BYTES} pages; the guest has {pages}."
            )
        reader = ChainReader(chain)
        while reader.remaining >= PFN_BYTES:
            pfns = read_pfns(reader.read(min(reader.remaining, PFNS_AT_ONCE * PFN_BYTES)))
            for first, count in runs(pfns):
                self._inflated_bytes += count * PAGE_BYTES
                await self._give_back(memory, first * PAGE_BYTES, count * PAGE_BYTES)
            await trio.lowlevel.checkpoint()

    async def _deflate(self, chain: DescriptorChain, memory: GuestMemory) -> None:
        """5.5.6.1: the driver takes pages back, which come with the guest's touching them."""

    async def _report(self, chain: DescriptorChain, memory: GuestMemory) -> None:
        """5.5.6.7 Free Page Reporting: each device-writable buffer is free memory."""
        if int.from_bytes(self._space[12:16], "little"):
            return  # the guest relies on what it has filled them with
        for view in chain.writable:
            self._reported_bytes += len(view)
            await self._give_back(memory, memory.address_of(view), len(view))

    async def _give_back(self, memory: GuestMemory, address: int, length: int) -> None:
        """Have the host take pages back, a piece at a time.

        Raises:
            GuestError: they are not RAM.
        """
        for begin in range(address, address + length, BYTES_AT_ONCE):
            size = min(BYTES_AT_ONCE, address + length - begin)
            await self._make_room(size)
            self._reclaimed_bytes += memory.discard(begin, size)

    async def _make_room(self, size: int) -> None:
        """Count a call for so many bytes; if that is too much at once, others go before it."""
        import trio

        self._calls_in_turn += 1
        self._bytes_in_turn += size
        if self._calls_in_turn > CALLS_AT_ONCE or self._bytes_in_turn > BYTES_AT_ONCE:
            self._calls_in_turn, self._bytes_in_turn = 1, size
            await trio.lowlevel.checkpoint()

    # --- statistics ----------------------------------------------------------------------

    async def _serve_statistics(self, active: ActiveQueue) -> None:
        """5.5.6.3: the driver keeps one buffer with us; used, it comes back with new figures."""
        import trio

        queue = active.queue
        while True:
            chain = queue.pop()
            if chain is None:
                if not queue.enable_notification():
                    await active.doorbell.wait()
                continue
            if not self._holding:  # else it is the one that we had before a pause
                self._holding = True
                self._requests += 1
                reader = ChainReader(chain)
                data = reader.read(min(reader.remaining, MAX_STATS * STAT.size))
                self._statistics = parse_statistics(data)
                self._tell_statistics()
            await self._until_wanted()
            self._holding = False
            queue.add_used(chain.head, 0)
            active.notify()
            await trio.lowlevel.checkpoint()

    async def _until_wanted(self) -> None:
        """Until somebody asks for figures, or it is time again."""
        import trio

        if self._heard is not None:
            return
        self._wanted = trio.Event()
        interval = self._config.stats_interval_s
        try:
            with trio.move_on_after(float("inf") if interval is None else interval):
                await self._wanted.wait()
        finally:
            self._wanted = None

    def _tell_statistics(self) -> None:
        heard, self._heard = self._heard, None
        if heard is not None:
            heard.set()
