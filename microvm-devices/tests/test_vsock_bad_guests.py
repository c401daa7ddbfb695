"""Guests that break the rules of virtio-vsock: errors are typed, costs bounded, others unharmed."""

import itertools
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from microvm.config import VsockConfig
from microvm.errors import QueueError
from microvm.testing.queue_driver import activation
from microvm_devices.vsock import limits
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import HEADER_BYTES, MAX_PACKET_BYTES, Op, Shutdown
from microvm_devices.vsock.testing import GuestVsock, Received

GUEST_PORT = 5000
PORT = 1024
PLENTY = 0x7FFF_FFFF


@asynccontextmanager
async def vsock(guest: GuestVsock | None = None) -> AsyncIterator[tuple[VsockDevice, GuestVsock]]:
    device = VsockDevice(VsockConfig())
    guest = guest or GuestVsock()
    async with guest.attached(device):
        yield device, guest


@asynccontextmanager
async def connected(
    guest: GuestVsock | None = None, *, buf_alloc: int = PLENTY
) -> AsyncIterator[tuple[VsockDevice, GuestVsock, trio.SocketStream]]:
    """A connection from GUEST_PORT to PORT. On leaving, it is checked to be as good as new."""
    async with vsock(guest) as (device, guest), device.listen(PORT) as listener:
        guest.send(Op.REQUEST, GUEST_PORT, PORT, buf_alloc=buf_alloc)
        assert ops(await guest.settled()) == [Op.RESPONSE]
        async with await listener.accept() as stream:
            yield device, guest, stream


async def assert_alive(guest: GuestVsock, stream: trio.SocketStream) -> None:
    """Bytes still pass both ways."""
    guest.send(Op.RW, GUEST_PORT, PORT, b"ping", buf_alloc=PLENTY)
    assert await stream.receive_some() == b"ping"
    await stream.send_all(b"pong")
    assert b"".join(p.payload for p in await guest.settled()) == b"pong"


def ops(packets: list[Received]) -> list[int]:
    return [packet.op for packet in packets]


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


# --- row 56: masses --------------------------------------------------------------------------


async def test_requests_beyond_the_backlog_of_a_listener_are_refused() -> None:
    """Row 56."""
    async with vsock() as (device, guest), device.listen(PORT) as listener:
        answers = []
        for port in range(limits.LISTEN_BACKLOG + 10):
            guest.send(Op.REQUEST, port, PORT)
            answers += await guest.settled()
        assert ops(answers).count(Op.RESPONSE) == limits.LISTEN_BACKLOG
        assert ops(answers)[-10:] == [Op.RST] * 10
        async with await listener.accept():
            guest.send(Op.REQUEST, 9999, PORT)
            assert ops(await guest.settled()) == [Op.RESPONSE]


async def test_the_1024th_connection_is_refused_and_room_is_made_by_closing() -> None:
    """Row 56."""
    async with vsock() as (device, guest), device.listen(PORT) as listener:
        streams = []
        for port in range(limits.MAX_CONNECTIONS):
            guest.send(Op.REQUEST, port, PORT)
            assert ops(await guest.settled()) == [Op.RESPONSE]
            streams.append(await listener.accept())
        guest.send(Op.REQUEST, 5555, PORT)
        assert ops(await guest.settled()) == [Op.RST]
        with pytest.raises(ConnectionRefusedError, match="1023"):
            await device.connect(1)
        guest.send(Op.RST, 0, PORT)
        guest.send(Op.REQUEST, 5555, PORT)
        assert ops(await guest.settled()) == [Op.RESPONSE]
        assert device.statistics.connections == limits.MAX_CONNECTIONS
        windows = [end.conn.buf_alloc for end in device._muxer._table.ends.values()]
        assert sum(windows) < 32 << 20
        for stream in streams:
            await stream.aclose()


async def test_a_storm_of_requests_leaves_nothing_behind() -> None:
    """Row 56."""
    async with vsock() as (device, guest):
        before = len(os.listdir("/proc/self/fd"))
        for port in range(5000):
            guest.send(Op.REQUEST, port, PORT)
            if port % 20 == 0:
                await guest.settled()
        await guest.settled()
        assert device.statistics.connections == 0
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_host_out_of_descriptors_refuses_the_guest_and_recovers() -> None:
    """Row 56."""
    async with vsock() as (device, guest), device.listen(PORT) as listener:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            guest.send(Op.REQUEST, 1, PORT)
            assert ops(await guest.settled()) == [Op.RST]
            with pytest.raises(Exception, match="open files"):
                await device.connect(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        guest.send(Op.REQUEST, 1, PORT)
        assert ops(await guest.settled()) == [Op.RESPONSE]
        await (await listener.accept()).aclose()


# --- row 57: credit --------------------------------------------------------------------------


async def test_a_guest_without_buffers_gets_nothing_but_one_request_for_credit() -> None:
    """Row 57."""
    async with connected(buf_alloc=0) as (_, guest, stream):
        for _ in range(3):
            await stream.send_all(b"waiting")
            await trio.testing.wait_all_tasks_blocked()
        assert ops(await guest.settled()) == [Op.CREDIT_REQUEST]
        guest.send(Op.CREDIT_UPDATE, GUEST_PORT, PORT, buf_alloc=10)
        packets = await guest.settled()
        assert [(p.op, p.payload) for p in packets] == [
            (Op.RW, b"waitingwai"),
            (Op.CREDIT_REQUEST, b""),
        ]


async def test_no_more_than_the_guests_credit_is_ever_sent() -> None:
    """Row 57."""
    async with connected(buf_alloc=5000) as (_, guest, stream):
        await stream.send_all(bytes(100_000))
        assert sum(p.header.len for p in await guest.settled()) == 5000
        # Taken back 3000, but the buffer shrank to 4000: 2000 are on their way, 2000 fit.
        guest.send(Op.CREDIT_UPDATE, GUEST_PORT, PORT, buf_alloc=4000, fwd_cnt=3000)
        assert sum(p.header.len for p in await guest.settled()) == 2000
        # Forwarded more than was ever sent.
        guest.send(Op.CREDIT_UPDATE, GUEST_PORT, PORT, buf_alloc=4000, fwd_cnt=9000)
        assert sum(p.header.len for p in await guest.settled()) == 0


async def test_a_guest_that_exceeds_its_credit_is_reset() -> None:
    """Row 57."""
    async with connected() as (device, guest, stream):
        answers = []
        sent = 0
        while Op.RST not in ops(answers):
            assert sent < limits.BUF_ALLOC + (1 << 20)
            guest.send(Op.RW, GUEST_PORT, PORT, bytes(MAX_PACKET_BYTES))
            sent += MAX_PACKET_BYTES
            answers += await guest.settled()
        assert sent > limits.BUF_ALLOC
        assert device.statistics.connections == 0
        while await stream.receive_some():
            pass


async def test_credit_is_told_before_the_guest_stands_still() -> None:
    """Row 57."""
    async with connected() as (_, guest, stream):
        told = 0
        for sent in range(0, 4 << 20, 50_000):
            # A guest whose knowledge of fwd_cnt is `told` may send this much.
            assert sent + 50_000 - told <= limits.BUF_ALLOC
            guest.send(Op.RW, GUEST_PORT, PORT, bytes(50_000))
            received = 0
            while received < 50_000:
                received += len(await stream.receive_some(50_000))
            for packet in await guest.settled():
                assert packet.op == Op.CREDIT_UPDATE
                told = packet.header.fwd_cnt


async def test_a_credit_request_is_answered_by_a_credit_update() -> None:
    """Row 57."""
    async with connected() as (_, guest, stream):
        guest.send(Op.RW, GUEST_PORT, PORT, b"abc")
        guest.send(Op.CREDIT_REQUEST, GUEST_PORT, PORT)
        (answer,) = await guest.settled()
        assert answer.op == Op.CREDIT_UPDATE
        assert (answer.header.buf_alloc, answer.header.fwd_cnt) == (limits.BUF_ALLOC, 3)
        assert await stream.receive_some() == b"abc"


async def test_counters_wrap_at_4_gib_without_losing_a_byte() -> None:
    """Row 57."""
    guest = GuestVsock(buf_alloc=64 * 1024)
    near_wrap = (1 << 32) - 100_000
    sent = os.urandom(400_000)
    async with vsock(guest) as (device, _), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        async with device.listen(PORT) as listener:
            far = await guest.connect(PORT)
            async with await listener.accept() as near:
                # As if both sides had carried almost 4 GiB each way by now.
                (end,) = device._muxer._table.ends.values()
                conn = end.conn
                conn.tx_cnt = conn.rx_cnt = conn.fwd_cnt = conn.told_fwd_cnt = near_wrap
                conn.peer_fwd_cnt = near_wrap
                far.tx_cnt = far.rx_cnt = far.fwd_cnt = far.peer_fwd_cnt = near_wrap
                far._told_fwd_cnt = near_wrap
                nursery.start_soon(far.send_all, sent)
                received = b""
                while len(received) < len(sent):
                    received += await near.receive_some(65536)
                assert received == sent
                nursery.start_soon(near.send_all, sent)
                received = b""
                while len(received) < len(sent):
                    received += await far.receive_some()
                assert received == sent
                assert conn.tx_cnt == conn.fwd_cnt == 300_000
        nursery.cancel_scope.cancel()


# --- row 58: back-pressure -------------------------------------------------------------------


async def test_a_guest_that_does_not_read_stops_the_hosts_writer() -> None:
    """Row 58."""
    async with connected(buf_alloc=4096) as (_, guest, stream):
        with trio.move_on_after(0.05) as scope:
            await stream.send_all(bytes(8 << 20))
        assert scope.cancelled_caught
        assert sum(p.header.len for p in await guest.settled()) == 4096


async def test_a_host_that_does_not_read_stops_the_guests_writer() -> None:
    """Row 58."""
    guest = GuestVsock(buf_alloc=4 * limits.BUF_ALLOC)
    async with vsock(guest) as (device, _), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        async with device.listen(PORT) as listener:
            far = await guest.connect(PORT)
            async with await listener.accept():
                with trio.move_on_after(0.05) as scope:
                    await far.send_all(bytes(8 << 20))
                assert scope.cancelled_caught
                (end,) = device._muxer._table.ends.values()
                assert len(end.backlog) == limits.BUF_ALLOC
        nursery.cancel_scope.cancel()


async def test_tx_is_served_while_rx_is_full() -> None:
    """Row 58."""
    guest = GuestVsock(queue_size=2)
    async with connected(guest) as (_, _, stream):
        guest.auto_rx = False
        await stream.send_all(bytes(100_000))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            guest.send(Op.RW, GUEST_PORT, PORT, b"abc", buf_alloc=PLENTY)
            assert await stream.receive_some() == b"abc"


async def test_a_guest_that_takes_no_rsts_is_not_listened_to_until_it_does() -> None:
    """Row 58."""
    guest = GuestVsock(queue_size=2)
    async with vsock(guest) as (device, _):
        guest.auto_rx = False
        taken = 0
        for port in range(2000):
            if not guest.tx.free_descriptors:
                break
            guest.send(Op.CREDIT_REQUEST, port, PORT)
            await trio.testing.wait_all_tasks_blocked()
            guest.tx.used()
            taken += guest.tx.free_descriptors == 2
        assert taken == limits.MAX_OWED_RSTS + 1
        assert len(device._muxer._table.rsts) == limits.MAX_OWED_RSTS
        guest.auto_rx = True
        assert len(await guest.settled()) >= limits.MAX_OWED_RSTS
        guest.tx.used()
        assert guest.tx.free_descriptors == 2


# --- row 59: ends ----------------------------------------------------------------------------


async def test_a_host_that_vanishes_with_bytes_unread_resets_the_guest() -> None:
    """Row 59."""
    async with connected() as (device, guest, stream):
        guest.send(Op.RW, GUEST_PORT, PORT, b"never read")
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
        assert ops(await guest.settled()) == [Op.RST]
        assert device.statistics.connections == 0


async def test_what_a_host_sent_before_it_closed_is_delivered_and_the_end_told_last() -> None:
    """Row 59."""
    async with connected() as (_, guest, stream):
        await stream.send_all(bytes(100_000))
        await stream.aclose()
        packets = await guest.settled()
        assert sum(p.header.len for p in packets) == 100_000
        assert ops(packets)[-1] == Op.SHUTDOWN
        assert packets[-1].header.flags == Shutdown.BOTH


async def test_what_a_guest_sent_before_it_closed_is_delivered_to_a_slow_reader() -> None:
    """Row 59."""
    sent = os.urandom(limits.BUF_ALLOC)
    async with connected() as (device, guest, stream):
        for start in range(0, len(sent), 1000):
            guest.send(Op.RW, GUEST_PORT, PORT, sent[start : start + 1000])
            await guest.settled()
        guest.send(Op.SHUTDOWN, GUEST_PORT, PORT, flags=Shutdown.BOTH)
        # The guest is confirmed at once, though its bytes are not read yet.
        assert ops(await guest.settled()) == [Op.RST]
        assert device._muxer._table.ends == {}
        assert device.statistics.connections == 1
        received = b""
        while part := await stream.receive_some(4096):
            received += part
        assert received == sent
        await trio.testing.wait_all_tasks_blocked()
        assert device.statistics.connections == 0


async def test_data_for_a_host_that_reads_no_more_ends_that_direction_alone() -> None:
    """Row 59."""
    async with connected() as (device, guest, stream):
        stream.socket.shutdown(trio.socket.SHUT_RD)
        guest.send(Op.RW, GUEST_PORT, PORT, b"too late", buf_alloc=PLENTY)
        (answer,) = await guest.settled()
        assert (answer.op, answer.header.flags) == (Op.SHUTDOWN, Shutdown.RECEIVE)
        guest.send(Op.RW, GUEST_PORT, PORT, b"crossed ours", buf_alloc=PLENTY)
        await stream.send_all(b"still talking")
        assert b"".join(p.payload for p in await guest.settled()) == b"still talking"
        assert device.statistics.dropped_packets == 1


async def test_a_hundred_aborted_hosts_leave_room_for_the_next() -> None:
    """Row 59."""
    async with vsock() as (device, guest), device.listen(PORT) as listener:
        for port in range(100):
            guest.send(Op.REQUEST, port, PORT, buf_alloc=PLENTY)
            await guest.settled()
            stream = await listener.accept()
            await stream.send_all(bytes(10_000))
            for _ in range(20):
                guest.send(Op.RW, port, PORT, bytes(1000), buf_alloc=PLENTY)
            await stream.aclose()
            assert ops(await guest.settled())[-1] == Op.SHUTDOWN
            guest.send(Op.RST, port, PORT)
        await guest.settled()
        assert device.statistics.connections == 0
        guest.send(Op.REQUEST, GUEST_PORT, PORT, buf_alloc=PLENTY)
        await guest.settled()
        async with await listener.accept() as stream:
            await assert_alive(guest, stream)


async def test_what_a_host_will_never_read_does_not_keep_its_connection() -> None:
    """Row 59."""
    async with connected() as (device, guest, stream):
        for _ in range(limits.BUF_ALLOC // 1000):
            guest.send(Op.RW, GUEST_PORT, PORT, bytes(1000), buf_alloc=PLENTY)
            await guest.settled()
        (end,) = device._muxer._table.ends.values()
        assert end.backlog
        # The host reads what its socket holds, then says that it reads no more; all before the
        # device hears of either.
        os.read(stream.socket.fileno(), limits.BUF_ALLOC)
        stream.socket.shutdown(trio.socket.SHUT_RD)
        (told,) = await guest.settled()
        assert (told.op, told.header.flags) == (Op.SHUTDOWN, Shutdown.RECEIVE)
        assert not end.backlog
        guest.send(Op.SHUTDOWN, GUEST_PORT, PORT, flags=Shutdown.BOTH)
        assert ops(await guest.settled()) == [Op.RST]
        assert device.statistics.connections == 0


async def test_what_is_owed_to_a_guest_without_rx_buffers_does_not_grow() -> None:
    """Row 59."""
    guest = GuestVsock(queue_size=2)
    async with connected(guest) as (device, _, _):
        guest.auto_rx = False
        for _ in range(1000):
            guest.send(Op.CREDIT_REQUEST, GUEST_PORT, PORT, buf_alloc=PLENTY)
            await trio.testing.wait_all_tasks_blocked()
        assert len(device._muxer._table.owing) == 1
        guest.auto_rx = True
        assert len(await guest.settled()) <= 2


class StarvingGuest(GuestVsock):
    """Gives no RX buffer, ever."""

    def post_rx(self, count: int | None = None) -> None:
        pass


async def test_connections_that_a_starving_guest_forgets_leave_nothing_to_be_paid() -> None:
    """Row 59."""
    device, guest = VsockDevice(VsockConfig()), StarvingGuest()
    async with guest.attached(device), trio.open_nursery() as nursery, device.listen(PORT) as ours:

        @nursery.start_soon
        async def accept() -> None:
            while True:
                stream = await ours.accept()
                await stream.send_all(b"hello")
                await stream.aclose()

        for number in range(600):
            guest.send(Op.REQUEST, number, PORT)
            await guest.settled()
            guest.send(Op.RST, number, PORT)
            await guest.settled()
        table = device._muxer._table
        assert (len(table), len(table.owing), len(table.ready)) == (0, 0, 0)
        nursery.cancel_scope.cancel()
