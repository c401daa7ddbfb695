"""What the guest receives: rows 31, 34, 48 and 49 of the hazard catalogue."""

from collections.abc import Sequence

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from microvm.abc import Offload
from microvm.config import MAX_MTU, RateLimit
from microvm.errors import QueueError
from microvm.testing.queue_driver import activation
from microvm.virtio.queue import VirtQueue
from microvm_devices.net.device import NetDevice
from microvm_devices.net.features import (
    F_CSUM,
    F_GUEST_CSUM,
    F_GUEST_TSO4,
    F_MRG_RXBUF,
)
from microvm_devices.net.packet import HEADER, HEADER_BYTES, MAX_FRAME_BYTES, PLAIN
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

NO_GSO = (0, 0, 0, 0, 0, 0)
OFFLOADS = Offload.CSUM | Offload.TSO4
TSO_FEATURES = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4
BUFFER = HEADER_BYTES + 1518


def incoming(payload: bytes) -> bytes:
    return ethernet(payload, source=PEER, to=MAC)


FRAME = incoming(b"hello")


@pytest.mark.parametrize("features", [0, F_MRG_RXBUF])
async def test_a_frame_lies_in_one_buffer_and_says_so(features: int) -> None:
    """Row 48: num_buffers is 1 also where there is no MRG_RXBUF (5.1.6.4.1)."""
    net = ScriptedNet()
    device = NetDevice(net, settings())
    async with running(device, features) as driver:
        driver.offer(BUFFER, BUFFER)
        net.link.give(FRAME)
        header, frame = await driver.received()
    assert header == (*NO_GSO, 1)
    assert frame == FRAME
    counters = device.counters()
    assert (counters["received_frames"], counters["received_bytes"]) == (1, len(FRAME))


@pytest.mark.parametrize("vnet_header", [False, True])
@pytest.mark.parametrize("sizes", [[12, 12] + [100] * 30, [13, 1, 11] + [64] * 40, [3000]])
async def test_48_a_frame_lies_in_as_many_buffers_as_it_says(
    vnet_header: bool, sizes: list[int]
) -> None:
    net = ScriptedNet(vnet_header=vnet_header, offloads=OFFLOADS)
    payload = bytes(range(256)) * 5
    frame = incoming(payload)
    if sizes[1:2] == [1]:
        # 5.1.6.3.1: each holds the header.
        sizes = [size for size in sizes if size >= HEADER_BYTES]
    async with running(NetDevice(net, settings()), F_MRG_RXBUF) as driver:
        driver.offer(*sizes)
        net.link.give(PLAIN + frame if vnet_header else frame)
        header, received = await driver.received()
    assert received == frame
    taken, left = 0, HEADER_BYTES + len(frame)
    while left > 0:
        left -= sizes[taken]
        taken += 1
    assert header == (*NO_GSO, taken)


@given(
    buffers=st.lists(
        st.lists(st.integers(1, 900), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 60),
        min_size=30,
        max_size=60,
    ),
    lengths=st.lists(st.integers(0, 1500), min_size=1, max_size=8),
)
@how(max_examples=40, deadline=None)
def test_48_any_frames_in_any_buffers_come_out_whole_and_in_order(
    buffers: list[list[int]], lengths: list[int]
) -> None:
    frames = [incoming(bytes([index]) * length) for index, length in enumerate(lengths)]

    async def check() -> None:
        net = ScriptedNet()
        net.link.give(*frames)
        async with running(NetDevice(net, settings()), F_MRG_RXBUF, size=512) as driver:
            got = []
            while len(got) < len(frames):
                for sizes in buffers:
                    if driver.rx.free_descriptors >= len(sizes):
                        driver.rx.add(writable=sizes)
                driver.rx.kick()
                got.append((await driver.received())[1])
            assert got == frames

    trio.run(check)


async def test_a_long_frame_with_segments_to_cut_is_received_with_its_header() -> None:
    net = ScriptedNet(vnet_header=True, offloads=OFFLOADS)
    frame = incoming(bytes(MAX_FRAME_BYTES - 14))
    header = HEADER.pack(1, 1, 54, 1448, 34, 16, 0xFFFF)
    async with running(NetDevice(net, settings()), TSO_FEATURES | F_MRG_RXBUF) as driver:
        driver.offer(*[4096] * 40)
        net.link.give(header + frame)
        received_header, received = await driver.received()
        assert net.link.accepted == OFFLOADS
    assert received == frame
    assert received_header == (1, 1, 54, 1448, 34, 16, 17)


async def test_what_the_driver_did_not_take_is_dropped_and_it_is_asked_not_to_come() -> None:
    net = ScriptedNet(vnet_header=True, offloads=OFFLOADS)
    device = NetDevice(net, settings())
    async with running(device) as driver:
        driver.offer(BUFFER, BUFFER)
        net.link.give(HEADER.pack(1, 0, 0, 0, 34, 16, 0) + FRAME, PLAIN + FRAME)
        assert (await driver.received())[0] == (*NO_GSO, 1)
        assert net.link.accepted == Offload(0)
    assert device.counters()["received_dropped"] == 1


# --- too little room -----------------------------------------------------------------------------


@pytest.mark.parametrize("vnet_header", [False, True])
async def test_48_a_frame_that_no_single_buffer_holds_is_dropped_without_mrg_and_the_buffer_kept(
    vnet_header: bool,
) -> None:
    net = ScriptedNet(vnet_header=vnet_header)
    head = PLAIN if vnet_header else b""
    device = NetDevice(net, settings())
    async with running(device) as driver:
        driver.offer(100)
        net.link.give(head + incoming(bytes(500)), head + FRAME)
        assert (await driver.received())[1] == FRAME
    assert device.counters()["received_dropped"] == 1


async def test_48_with_mrg_one_frame_is_held_until_there_is_room_for_it() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings())
    frames = [incoming(bytes([index]) * 500) for index in range(3)]
    async with running(device, F_MRG_RXBUF) as driver:
        driver.offer(200)
        net.link.give(*frames)
        await trio.testing.wait_all_tasks_blocked()
        assert len(net.link.incoming) == 2
        assert driver.rx.used() == []
        driver.offer(200)
        await trio.testing.wait_all_tasks_blocked()
        assert driver.rx.used() == []
        for frame in frames:
            driver.offer(*[200] * 3)
            header, received = await driver.received()
            assert (header[-1], received) == (3, frame)
    assert device.counters()["received_dropped"] == 0


async def test_48_a_driver_that_can_offer_no_more_loses_the_frame_and_no_other() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings())
    async with running(device, F_MRG_RXBUF, size=4) as driver:
        driver.offer(*[100] * 4)
        net.link.give(incoming(bytes(1000)), FRAME)
        assert (await driver.received())[1] == FRAME
    assert device.counters()["received_dropped"] == 1


class IovLink(ScriptedLink):
    """As the kernel, which fills 1024 pieces and no more (readv(2), recvmsg(2))."""

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        assert len(buffers) <= 1024
        return super().receive(buffers)


@pytest.mark.parametrize("vnet_header", [False, True])
async def test_48_buffers_of_very_many_pieces_are_not_collected_without_end(
    vnet_header: bool,
) -> None:
    """Each chain has a table of its own: 64 of 256 pieces would be 16384 for one frame."""
    net = ScriptedNet(vnet_header=vnet_header, offloads=OFFLOADS)
    net.links = [link := IovLink()]
    head = PLAIN if vnet_header else b""
    device = NetDevice(net, settings(mtu=9000))
    async with running(device, F_MRG_RXBUF) as driver:
        for _ in range(64):
            driver.rx.add(writable=[1] * 256, indirect=True)
        driver.rx.kick()
        link.give(head + incoming(bytes(8000)), head + FRAME)
        with trio.fail_after(5):
            assert (await driver.received())[1] == FRAME
    assert device.counters()["received_dropped"] == 1


@pytest.mark.parametrize("features", [0, F_MRG_RXBUF])
@pytest.mark.parametrize("vnet_header", [False, True])
async def test_48_a_frame_beyond_the_mtu_is_dropped(features: int, vnet_header: bool) -> None:
    net = ScriptedNet(vnet_header=vnet_header)
    head = PLAIN if vnet_header else b""
    device = NetDevice(net, settings())
    async with running(device, features) as driver:
        for size in (BUFFER - 500, BUFFER + 4):
            driver.offer(size)
            net.link.give(head + incoming(bytes(5000)), head + FRAME)
            assert (await driver.received())[1] == FRAME
    assert device.counters()["received_dropped"] == 2


async def test_48_with_the_longest_mtu_a_frame_that_was_cut_off_is_dropped_too() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings(mtu=MAX_MTU))
    async with running(device, F_MRG_RXBUF) as driver:
        driver.offer(100)
        net.link.give(bytes(MAX_FRAME_BYTES + 1))
        await trio.testing.wait_all_tasks_blocked()
        net.link.give(FRAME)
        with trio.fail_after(5):
            assert (await driver.received())[1] == FRAME
    assert device.counters()["received_dropped"] == 1


@pytest.mark.parametrize("data", [b"", PLAIN[:-1], PLAIN])
async def test_a_link_that_gives_less_than_a_frame_does_no_harm(data: bytes) -> None:
    net = ScriptedNet(vnet_header=True)
    async with running(NetDevice(net, settings())) as driver:
        driver.offer(BUFFER + 4, 100)
        net.link.give(data, PLAIN + FRAME)
        assert (await driver.received())[1] == FRAME


@pytest.mark.parametrize(
    ("readable", "writable"), [([b"read only" * 200], []), ([], [11]), ([b"x"], [5, 6])]
)
@pytest.mark.parametrize("features", [0, F_MRG_RXBUF])
async def test_48_a_buffer_without_room_for_a_header_is_the_drivers_fault(
    features: int, readable: list[bytes], writable: list[int]
) -> None:
    device = NetDevice(ScriptedNet(), settings())
    driver = NetDriver(features)
    driver.rx.add(readable, writable)
    driver.rx.kick()
    async with device.lifespan():
        with trio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
            await driver.drive(device)
    assert caught.group_contains(QueueError, match="receive buffer")


async def test_48_without_buffers_nothing_is_received() -> None:
    net = ScriptedNet()
    async with running(NetDevice(net, settings())) as driver:
        net.link.give(FRAME, FRAME)
        await trio.testing.wait_all_tasks_blocked()
        assert len(net.link.incoming) == 2
        driver.offer(BUFFER)
        assert (await driver.received())[1] == FRAME
        await trio.testing.wait_all_tasks_blocked()
        assert len(net.link.incoming) == 1


async def test_49_a_flood_that_nobody_drains_is_over_when_somebody_does() -> None:
    """Row 49, by the driver double: what the device itself holds is one frame."""
    net = ScriptedNet()
    device = NetDevice(net, settings())
    async with running(device, F_MRG_RXBUF) as driver:
        for index in range(1000):
            net.link.give(incoming(b"%d" % index))
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert len(net.link.incoming) == 1000
        for index in range(1000):
            driver.offer(BUFFER)
            assert (await driver.received())[1] == incoming(b"%d" % index)
    assert device.counters()["received_dropped"] == 0


async def test_31_buffers_offered_one_by_one_are_never_forgotten() -> None:
    """Row 31, either side first."""
    net = ScriptedNet()
    async with running(NetDevice(net, settings()), size=4) as driver:
        for index in range(1000):
            frame = incoming(b"%d" % index)
            if index & 1:
                net.link.give(frame)
                await trio.lowlevel.checkpoint()
                driver.offer(BUFFER)
            else:
                driver.offer(BUFFER)
                net.link.give(frame)
            assert (await driver.received())[1] == frame


async def test_31_buffers_that_come_while_the_doorbell_is_asked_for_are_taken() -> None:
    """Row 31: the driver did not see the wish yet, and does not ring."""

    class Late(VirtQueue):
        __slots__ = ()

        def enable_notification(self) -> bool:
            if not self.next_avail:
                driver.rx.add(writable=[BUFFER])
            return super().enable_notification()

    net = ScriptedNet()
    device = NetDevice(net, settings())
    driver = NetDriver()
    net.link.give(FRAME)
    active = activation(*driver.queues, features=driver.features)
    late = Late(driver.memory, driver.rx.layout, features=driver.features)
    queues = (attrs.evolve(active.queues[0], queue=late), active.queues[1])
    async with device.lifespan(), trio.open_nursery() as nursery:
        nursery.start_soon(device.run, attrs.evolve(active, queues=queues))
        with trio.fail_after(5):
            assert (await driver.received())[1] == FRAME
        nursery.cancel_scope.cancel()


async def test_48_a_frame_in_several_buffers_is_there_at_once_or_not_at_all() -> None:
    """5.1.6.4.1: the driver counts on the others when it sees the first."""

    class Whole(VirtQueue):
        __slots__ = ()

        def add_used(self, head: int, written: int) -> None:
            pytest.fail("A frame's buffers are handed back one by one.")

    net = ScriptedNet()
    device = NetDevice(net, settings())
    driver = NetDriver(F_MRG_RXBUF)
    driver.offer(*[100] * 20)
    net.link.give(incoming(bytes(250)))
    active = activation(*driver.queues, features=driver.features)
    whole = Whole(driver.memory, driver.rx.layout, features=driver.features)
    queues = (attrs.evolve(active.queues[0], queue=whole), active.queues[1])
    async with device.lifespan(), trio.open_nursery() as nursery:
        nursery.start_soon(device.run, attrs.evolve(active, queues=queues))
        with trio.fail_after(5):
            assert (await driver.received())[0][-1] == 3
        nursery.cancel_scope.cancel()


async def test_a_driver_is_not_asked_to_ring_while_there_are_buffers() -> None:
    net = ScriptedNet()
    async with running(NetDevice(net, settings())) as driver:
        for index in range(100):
            # The first time it waits for them, and then it has some to spare.
            driver.offer(BUFFER, *[BUFFER] * (index == 0))
            net.link.give(FRAME)
            await driver.received()
        assert driver.rx.doorbell.rings <= 2


async def test_48_a_frame_that_fills_its_buffers_to_the_last_byte_takes_no_other() -> None:
    net = ScriptedNet()
    async with running(NetDevice(net, settings()), F_MRG_RXBUF) as driver:
        driver.offer(*[100] * 20)
        for buffers in (1, 2, 3):
            frame = incoming(bytes(100 * buffers - HEADER_BYTES - 14))
            net.link.give(frame)
            header, received = await driver.received()
            assert (header[-1], received) == (buffers, frame)


async def test_a_batch_is_interrupted_for_once() -> None:
    net = ScriptedNet()
    net.link.give(*[incoming(b"%d" % index) for index in range(20)])

    def offer(driver: NetDriver) -> None:
        driver.offer(*[BUFFER + 4] * 30)

    async with running(NetDevice(net, settings()), before=offer) as driver:
        for _ in range(20):
            await driver.received()
        assert driver.rx.irq.triggers == 1


def test_a_rate_limit_is_kept() -> None:
    net = ScriptedNet()
    limit = RateLimit(bytes_per_s=10 * len(FRAME), burst_bytes=len(FRAME))
    device = NetDevice(net, settings(rx_rate_limit=limit))
    net.link.give(*[FRAME] * 31)

    async def check() -> None:
        async with running(device, before=lambda d: d.offer(*[BUFFER] * 40)) as driver:
            began = trio.current_time()
            for _ in range(31):
                await driver.received()
            assert trio.current_time() - began == pytest.approx(3, abs=0.2)

    trio.run(check, clock=trio.testing.MockClock(autojump_threshold=0))
    assert device.counters()["throttled"] >= 1
