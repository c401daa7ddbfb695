"""What the guest sends: rows 31, 34, 46, 47 and 51 of the hazard catalogue."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from microvm.abc import Frame, Offload
from microvm.config import RateLimit
from microvm.testing.queue_driver import activation
from microvm.virtio.rate_limit import RateLimiter
from microvm_devices.net.counts import Counts
from microvm_devices.net.device import NetDevice
from microvm_devices.net.features import F_CSUM, F_HOST_TSO4
from microvm_devices.net.packet import (
    HEADER,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_PIECES,
    PLAIN,
    Fault,
    TransmitRules,
)
from microvm_devices.net.port import Port
from microvm_devices.net.testing import (
    MAC,
    PEER,
    NetDriver,
    ScriptedLink,
    ScriptedNet,
    ethernet,
    running,
    settings,
)
from microvm_devices.net.transmit import BATCH, TransmitFlow

FRAME = ethernet()
OFFLOADS = Offload.CSUM | Offload.TSO4
TSO = HEADER.pack(1, 1, 0xFFFF, 1448, 34, 16, 7)
TSO_SENT = HEADER.pack(1, 1, 0, 1448, 34, 16, 0)


async def handed_back(driver: NetDriver, count: int = 1) -> None:
    """Row 34: nothing was written, and says so."""
    used = await driver.tx.wait_used(count)
    assert [(buffer.written, buffer.data) for buffer in used] == [(0, b"")] * count


async def test_a_frame_arrives_without_its_virtio_header_where_the_link_has_none() -> None:
    net = ScriptedNet()
    async with running(NetDevice(net, settings())) as driver:
        driver.send(FRAME)
        assert await net.link.sent() == FRAME
        await handed_back(driver)


async def test_a_frame_arrives_with_a_header_where_the_link_takes_one() -> None:
    net = ScriptedNet(vnet_header=True, offloads=OFFLOADS)
    device = NetDevice(net, settings())
    long = ethernet(bytes(60_000))
    async with running(device, F_CSUM | F_HOST_TSO4) as driver:
        driver.send(FRAME, HEADER.pack(0xFE, 0, 9, 9, 9, 9, 9))
        assert await net.link.sent() == PLAIN + FRAME
        driver.send(long, TSO)
        assert await net.link.sent() == TSO_SENT + long
        await handed_back(driver, 2)
    counters = device.counters()
    assert counters["sent_frames"] == counters["requests"] == 2
    assert counters["sent_bytes"] == len(FRAME) + len(long)
    assert counters["errors"] == 0


@given(cut=st.lists(st.integers(0, HEADER_BYTES + len(FRAME)), max_size=12).map(sorted))
@how(max_examples=60, deadline=None)
def test_row_46_a_frame_may_be_cut_anywhere(cut: list[int]) -> None:
    cut = [place for place, following in pairwise([*cut, -1]) if place != following]

    async def check() -> None:
        net = ScriptedNet()
        async with running(NetDevice(net, settings()), size=16) as driver:
            driver.send(FRAME, cut=cut)
            assert await net.link.sent() == FRAME

    trio.run(check)


@pytest.mark.parametrize(
    "data",
    [b"x", PLAIN[:-1], PLAIN, PLAIN + FRAME[:13], PLAIN + ethernet(bytes(1505))],
    ids=["a byte", "half a header", "a header", "no Ethernet header", "beyond the MTU"],
)
async def test_row_46_what_is_no_frame_is_dropped_and_handed_back(data: bytes) -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings())
    async with running(device) as driver:
        driver.tx.add([data])
        driver.tx.kick()
        await handed_back(driver)
        driver.send(FRAME)
        assert await net.link.sent() == FRAME
    assert device.counters()["sent_dropped"] == device.counters()["errors"] == 1


async def test_row_46_a_chain_without_anything_to_read_is_dropped() -> None:
    net = ScriptedNet()
    async with running(NetDevice(net, settings())) as driver:
        driver.tx.add(writable=[64])
        driver.tx.kick()
        (used,) = await driver.tx.wait_used()
        assert used.written == 0
        driver.send(FRAME)
        assert await net.link.sent() == FRAME


async def test_row_46_nothing_is_longer_than_the_longest_frame() -> None:
    net = ScriptedNet(vnet_header=True, offloads=OFFLOADS)
    async with running(NetDevice(net, settings()), F_CSUM | F_HOST_TSO4) as driver:
        longest = ethernet(bytes(MAX_FRAME_BYTES - 14))
        driver.send(longest + b"x", TSO)
        driver.send(longest, TSO)
        assert await net.link.sent() == TSO_SENT + longest
        await handed_back(driver, 2)
        assert not net.link.taken


async def test_row_47_an_offload_not_negotiated_is_dropped_also_where_it_was_offered() -> None:
    net = ScriptedNet(vnet_header=True, offloads=OFFLOADS)
    device = NetDevice(net, settings())
    async with running(device) as driver:
        driver.send(FRAME, HEADER.pack(1, 0, 0, 0, 14, 0, 0))
        await handed_back(driver)
    assert device.counters()["sent_dropped"] == 1
    assert not net.link.taken


async def test_row_51_a_spoofed_source_is_dropped_if_the_address_was_given() -> None:
    for fixed in (True, False):
        net = ScriptedNet()
        device = NetDevice(net, settings(fixed_mac=fixed))
        async with running(device) as driver:
            driver.send(ethernet(b"spoofed", source=PEER))
            driver.send(FRAME)
            await handed_back(driver, 2)
        assert (FRAME in net.link.taken, len(net.link.taken)) == (True, 1 if fixed else 2)
        assert device.counters()["sent_dropped"] == int(fixed)


class CountingLink(ScriptedLink):
    """Looks at how many pieces a frame has."""

    pieces = 0

    def send(self, frames: Sequence[Frame]) -> int:
        self.pieces = max(map(len, frames))
        return super().send(frames)


async def test_a_frame_of_many_tiny_buffers_is_one_frame_in_no_more_pieces_than_a_call_takes() -> (
    None
):
    net = ScriptedNet()
    net.links = [link := CountingLink()]
    frame = ethernet(bytes(range(200)) + bytes(range(200)))
    async with running(NetDevice(net, settings()), size=1024) as driver:
        driver.send(frame, cut=range(1, len(frame)))
        assert await link.sent() == frame
    assert link.pieces <= MAX_PIECES + 1


class RewritingLink(ScriptedLink):
    """Sends what lies there when it comes to it; the guest has rewritten its buffer by then."""

    def __init__(self) -> None:
        super().__init__()
        self.rewrite: Callable[[], None] = lambda: None

    def send(self, frames: Sequence[Frame]) -> int:
        self.rewrite()
        return super().send(frames)


async def test_29_what_was_checked_is_what_is_sent_whatever_the_guest_writes_meanwhile() -> None:
    """Row 29: both headers are a copy; the rest decides nothing."""
    net = ScriptedNet(vnet_header=True, offloads=OFFLOADS)
    net.links = [link := RewritingLink()]
    async with running(NetDevice(net, settings(fixed_mac=True))) as driver:
        data = PLAIN + FRAME
        block, _ = driver.tx.heap.take(len(data))
        driver.memory.write(block, data)
        driver.tx.write_descriptor(0, block, len(data), 0)
        link.rewrite = lambda: driver.memory.write(block, b"\xff" * len(data))
        driver.tx.offer(0)
        driver.tx.kick()
        sent = await link.sent()
    assert sent[:26] == data[:26]
    assert sent[26:] == b"\xff" * len(data[26:])


async def test_29_what_is_checked_is_a_copy() -> None:
    """Row 29: where both headers are in one buffer, and where they are cut."""

    class CopyRules(TransmitRules):
        __slots__ = ()

        def head(self, head: bytes, length: int) -> bytes | Fault:
            assert type(head) is bytes
            return super().head(head, length)

    driver, link = NetDriver(), ScriptedLink()
    flow = TransmitFlow(
        driver.tx.active(),
        Port(link, lambda: None),
        vnet_header=False,
        rules=CopyRules(offloads=Offload(0), mtu=1500),
        limiter=RateLimiter(None),
        counts=Counts(),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flow.run)
        for cut in ([], [12], [3, 20]):
            driver.send(FRAME, cut=cut)
            assert await link.sent() == FRAME
        nursery.cancel_scope.cancel()


# --- flow ----------------------------------------------------------------------------------------


async def test_frames_offered_together_go_together_and_are_interrupted_for_once() -> None:
    net = ScriptedNet()

    def offer(driver: NetDriver) -> None:
        for index in range(10):
            driver.send(ethernet(b"%d" % index))

    async with running(NetDevice(net, settings()), before=offer) as driver:
        await handed_back(driver, 10)
        assert driver.tx.irq.triggers == 1
    assert net.link.batches == [10]
    assert list(net.link.taken) == [ethernet(b"%d" % index) for index in range(10)]


async def test_a_link_that_is_full_keeps_frames_waiting_in_order_and_none_is_lost() -> None:
    net = ScriptedNet()
    net.link.make_room(3)
    frames = [ethernet(b"%d" % index) for index in range(200)]

    def offer(driver: NetDriver) -> None:
        for frame in frames:
            driver.send(frame)

    async with running(NetDevice(net, settings()), before=offer) as driver:
        await handed_back(driver, 3)
        await trio.testing.wait_all_tasks_blocked()
        # A batch was taken from the queue, and no more.
        assert driver.tx.used() == []
        assert len(net.link.batches) < 4
        for _ in range(100):
            net.link.make_room(2)
            await trio.testing.wait_all_tasks_blocked()
        net.link.make_room(None)
        await handed_back(driver, 197)
    assert list(net.link.taken) == frames


async def test_a_run_that_ends_while_the_link_is_full_goes_on_where_it_stood() -> None:
    """As after a pause: what was popped and not sent is offered again by the transport."""
    net = ScriptedNet()
    net.link.make_room(1)
    device = NetDevice(net, settings())
    driver = NetDriver()
    for index in range(5):
        driver.send(ethernet(b"%d" % index))
    async with device.lifespan():
        active = activation(*driver.queues)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run, active)
            await handed_back(driver)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        queue = active.queues[1].queue
        queue.rewind()
        assert (queue.next_avail, queue.in_flight) == (1, 0)


class HalfSentLink(ScriptedLink):
    """Keeps a piece of each last frame, and has kept one from before a pause."""

    flushed = False

    @property
    def blocked(self) -> bool:
        return not self.flushed

    def send(self, frames: Sequence[Frame]) -> int:
        self.flushed = False
        return super().send(frames)

    async def wait_writable(self) -> None:
        await super().wait_writable()
        self.flushed = True


@pytest.mark.parametrize("frames", [0, 1])
async def test_the_rest_of_a_frame_goes_out_though_nothing_else_is_sent(frames: int) -> None:
    net = ScriptedNet()
    net.links = [link := HalfSentLink()]
    async with running(NetDevice(net, settings())) as driver:
        for _ in range(frames):
            driver.send(FRAME)
        # As each run's first wait does (`RunDoorbell`), also after a pause.
        driver.tx.doorbell.ring()
        await trio.testing.wait_all_tasks_blocked()
        assert (len(link.taken), link.flushed) == (frames, True)


async def test_row_46_and_31_frames_offered_while_the_device_sleeps_are_never_forgotten() -> None:
    """Row 31: one by one, and each waits for the device's notice of the last."""
    net = ScriptedNet()
    async with running(NetDevice(net, settings()), size=4) as driver:
        for index in range(1000):
            frame = ethernet(b"%d" % index)
            driver.send(frame)
            assert await net.link.sent() == frame
            await handed_back(driver)


async def test_a_driver_that_offers_without_end_lets_others_run() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings())
    driver = NetDriver()
    turns = 0
    async with device.lifespan(), trio.open_nursery() as nursery:
        nursery.start_soon(driver.drive, device)
        for _ in range(20):
            for _ in range(BATCH):
                driver.send(FRAME)
            turns += 1
            await driver.tx.wait_used(BATCH)
        nursery.cancel_scope.cancel()
    assert turns == 20


def test_a_rate_limit_is_kept_and_counted() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings(tx_rate_limit=RateLimit(ops_per_s=10, burst_ops=10)))

    def offer(driver: NetDriver) -> None:
        for _ in range(50):
            driver.send(FRAME)

    async def check() -> None:
        async with running(device, before=offer) as driver:
            await handed_back(driver, 10)
            began = trio.current_time()
            await handed_back(driver, 40)
            assert trio.current_time() - began == pytest.approx(4, abs=0.2)

    trio.run(check, clock=trio.testing.MockClock(autojump_threshold=0))
    assert device.counters()["throttled"] >= 1


# --- the link goes down --------------------------------------------------------------------------


async def test_a_link_that_goes_down_takes_the_carrier_and_not_the_device() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings())
    async with running(device) as driver:
        assert device.read_config(6, 2) == b"\1\0"
        net.link.give(ethernet(b"last", source=PEER, to=MAC))
        net.link.break_off()
        driver.offer(2048, 2048)
        assert (await driver.received())[1].endswith(b"last")
        await trio.testing.wait_all_tasks_blocked()
        assert device.read_config(6, 2) == b"\0\0"
        assert driver.config_changes == 1
        driver.send(FRAME)
        await handed_back(driver)
    counters = device.counters()
    assert (counters["link_down"], counters["sent_dropped"], counters["sent_frames"]) == (1, 1, 0)


async def test_a_link_that_goes_down_under_a_full_queue_frees_it() -> None:
    net = ScriptedNet()
    net.link.make_room(0)
    device = NetDevice(net, settings())
    async with running(device) as driver:
        for _ in range(100):
            driver.send(FRAME)
        await trio.testing.wait_all_tasks_blocked()
        net.link.break_off()
        await handed_back(driver, 100)
    assert device.counters()["sent_dropped"] == 100
