"""Connections that end badly, on either side: nothing is lost or left over. Row 59."""

import os

import trio
import trio.testing

from microvm.config import VsockConfig
from microvm_devices.vsock import limits
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import Op, Shutdown
from microvm_devices.vsock.testing import GuestVsock

from .vsock_guests import GUEST_PORT, PLENTY, PORT, assert_alive, connected, ops, vsock


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
