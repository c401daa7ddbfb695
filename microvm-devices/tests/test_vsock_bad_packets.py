"""Packets that break the rules of virtio-vsock: sizes, addresses, turns. Rows 52 to 55."""

import itertools
import os

import pytest
import trio
import trio.testing

from microvm.config import VsockConfig
from microvm.errors import QueueError
from microvm.testing.queue_driver import activation
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import HEADER_BYTES, MAX_PACKET_BYTES, Op
from microvm_devices.vsock.testing import GuestVsock

from .vsock_guests import GUEST_PORT, PLENTY, PORT, assert_alive, connected, ops, vsock

# --- row 52: sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 43])
async def test_a_tx_chain_shorter_than_a_header_breaks_the_queue(length: int) -> None:
    """Row 52."""
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with device.lifespan():
        guest.put_bytes([bytes(length)])
        with pytest.raises(QueueError, match=f"{length} bytes"):
            await device.run(activation(guest.rx, guest.tx, guest.event))


@pytest.mark.parametrize("length", [1, 43, 44])
async def test_an_rx_buffer_without_room_for_a_packet_breaks_the_queue(length: int) -> None:
    """Row 52."""
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with device.lifespan():
        guest.rx.add([], [length])
        guest.send(Op.RW, 1, 2)
        with pytest.raises(QueueError, match=f"{length} bytes"):
            await device.run(activation(guest.rx, guest.tx, guest.event))


async def test_a_driver_with_one_queue_is_refused() -> None:
    """Row 52."""
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with device.lifespan():
        with pytest.raises(QueueError):
            await device.run(activation(guest.rx))


async def test_a_broken_queue_fails_the_device_even_when_a_program_finds_it() -> None:
    """Row 52. connect() fills RX on its own task; the error is for `run`, and connect waits on."""
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with device.lifespan(), trio.open_nursery() as nursery:
        guest.rx.add([], [10])

        @nursery.start_soon
        async def run() -> None:
            with pytest.raises(QueueError):
                await device.run(activation(guest.rx, guest.tx, guest.event))
            nursery.cancel_scope.cancel()

        await device.connect(52)


@pytest.mark.parametrize(
    ("length", "carried"),
    [(5, 4), (MAX_PACKET_BYTES + 1, MAX_PACKET_BYTES + 1), (0xFFFF_FFFF, 4)],
)
async def test_a_packet_longer_than_its_buffers_or_64_kib_resets_its_connection(
    length: int, carried: int
) -> None:
    """Row 52."""
    async with connected() as (device, guest, stream):
        guest.send(Op.RW, GUEST_PORT, PORT, bytes(carried), len=length)
        assert ops(await guest.settled()) == [Op.RST]
        assert await stream.receive_some() == b""
        assert device.statistics.connections == 0


async def test_a_payload_may_be_cut_over_descriptors_anywhere() -> None:
    """Row 52."""
    payload = bytes(range(100))
    async with connected() as (_, guest, stream):
        header = guest.packet(Op.RW, GUEST_PORT, PORT, len=100, buf_alloc=PLENTY).pack()
        whole = header + payload
        for cuts in ([44], [1], [43], [45], [143], [10, 20, 30, 44, 45, 100], range(1, 30)):
            edges = [0, *cuts, len(whole)]
            guest.put_bytes([whole[a:b] for a, b in itertools.pairwise(edges)])
            assert await stream.receive_some() == payload


async def test_buffers_longer_than_the_packet_do_not_lengthen_it() -> None:
    """Row 52."""
    async with connected() as (_, guest, stream):
        header = guest.packet(Op.RW, GUEST_PORT, PORT, len=3, buf_alloc=PLENTY).pack()
        guest.put_bytes([header, b"abcdef"])
        guest.put_bytes([header + b"ghijkl"])
        await trio.testing.wait_all_tasks_blocked()
        assert await stream.receive_some() == b"abcghi"


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("room", [1, 2, 100, 5000, MAX_PACKET_BYTES + 100])
async def test_rx_buffers_of_any_size_are_filled_and_no_packet_exceeds_64_kib(
    split: bool, room: int
) -> None:
    """Row 52."""
    guest = GuestVsock(split=split, rx_buffer_bytes=HEADER_BYTES + room)
    sent = os.urandom(min(room * 50, 150_000))
    async with connected(guest) as (_, _, stream):
        await stream.send_all(sent)
        packets = await guest.settled()
        assert b"".join(p.payload for p in packets) == sent
        assert max(p.header.len for p in packets) <= MAX_PACKET_BYTES


# --- rows 53 and 54: addresses, types, operations --------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"src_cid": 2}, {"src_cid": 4}, {"src_cid": 3 | 1 << 32}, {"dst_cid": 3}, {"dst_cid": 0}],
)
async def test_a_packet_with_other_cids_is_dropped_without_an_answer(
    fields: dict[str, int],
) -> None:
    """Row 53."""
    async with connected() as (device, guest, stream):
        guest.send(Op.RW, GUEST_PORT, PORT, b"forged", **fields)
        guest.send(Op.RST, GUEST_PORT, PORT, **fields)
        guest.send(Op.REQUEST, 1, PORT, **fields)
        assert await guest.settled() == []
        assert device.statistics.dropped_packets == 3
        await assert_alive(guest, stream)


@pytest.mark.parametrize("type_", [0, 2, 3, 0xFFFF])
async def test_a_type_not_negotiated_is_answered_by_rst_and_harms_no_stream(type_: int) -> None:
    """Row 54."""
    async with connected() as (_, guest, stream):
        guest.send(Op.REQUEST, 1, PORT, type=type_)
        guest.send(Op.RW, GUEST_PORT, PORT, b"other type", type=type_)
        answers = await guest.settled()
        assert [(p.op, p.header.type) for p in answers] == [(Op.RST, type_)] * 2
        await assert_alive(guest, stream)


@pytest.mark.parametrize("op", [0, 8, 0xFFFF])
async def test_an_unknown_operation_is_dropped(op: int) -> None:
    """Row 54."""
    async with connected() as (device, guest, stream):
        guest.send(op, GUEST_PORT, PORT)
        assert await guest.settled() == []
        assert device.statistics.dropped_packets == 1
        await assert_alive(guest, stream)


async def test_an_rst_is_never_answered() -> None:
    """Row 54."""
    async with vsock() as (_, guest):
        for type_ in (1, 2, 0):
            guest.send(Op.RST, 1, 2, type=type_)
        assert await guest.settled() == []


async def test_reserved_shutdown_flags_and_none_at_all_mean_nothing() -> None:
    """Row 54."""
    async with connected() as (_, guest, stream):
        guest.send(Op.SHUTDOWN, GUEST_PORT, PORT, flags=0)
        guest.send(Op.SHUTDOWN, GUEST_PORT, PORT, flags=0xFFFF_FFFC)
        assert await guest.settled() == []
        await assert_alive(guest, stream)


# --- row 55: out of turn ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [Op.RESPONSE, Op.SHUTDOWN, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.INVALID, 99],
)
async def test_a_packet_of_no_connection_is_answered_by_rst(op: int) -> None:
    """Row 55."""
    async with vsock() as (_, guest):
        guest.send(op, 1, 2)
        (answer,) = await guest.settled()
        assert (answer.op, answer.header.src_port, answer.header.dst_port) == (Op.RST, 2, 1)


async def test_a_request_for_a_live_connection_is_refused_and_does_not_harm_it() -> None:
    """Row 55."""
    async with connected() as (_, guest, stream):
        guest.send(Op.REQUEST, GUEST_PORT, PORT, buf_alloc=0)
        assert ops(await guest.settled()) == [Op.RST]
        await assert_alive(guest, stream)


async def test_an_unasked_response_resets_the_connection_that_it_names() -> None:
    """Row 55."""
    async with connected() as (device, guest, _):
        guest.send(Op.RESPONSE, GUEST_PORT, PORT)
        assert ops(await guest.settled()) == [Op.RST]
        assert device.statistics.connections == 0


async def test_a_request_to_a_port_that_nobody_serves_is_refused() -> None:
    """Row 55."""
    async with vsock() as (_, guest):
        guest.send(Op.REQUEST, 1, 99)
        assert ops(await guest.settled()) == [Op.RST]
