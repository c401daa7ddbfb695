"""Guests that want too much, or take too little: what they cost is bounded. Rows 56 to 58."""

import os
import resource

import pytest
import trio
import trio.testing

from microvm_devices.vsock import limits
from microvm_devices.vsock.packet import MAX_PACKET_BYTES, Op
from microvm_devices.vsock.testing import GuestVsock

from .vsock_guests import GUEST_PORT, PLENTY, PORT, connected, ops, vsock

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
