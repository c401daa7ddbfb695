"""Bugs that other hosts of virtio-vsock have had; each test names the report it guards against.

FC is Firecracker, CH Cloud Hypervisor. The raw `GuestVsock` plays the guest.
"""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from microvm.config import VsockConfig
from microvm.errors import GuestRefused
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import HEADER_BYTES, Op, Shutdown
from microvm_devices.vsock.testing import GuestVsock, Received

GUEST_PORT = 5000
PORT = 1024
PLENTY = 0x7FFF_FFFF


@asynccontextmanager
async def vsock(
    guest: GuestVsock | None = None,
) -> AsyncIterator[tuple[VsockDevice, GuestVsock]]:
    device = VsockDevice(VsockConfig())
    guest = guest or GuestVsock()
    async with guest.attached(device):
        yield device, guest


@asynccontextmanager
async def connected(
    guest: GuestVsock | None = None,
) -> AsyncIterator[tuple[VsockDevice, GuestVsock, trio.SocketStream]]:
    """A device with a connection that the guest has made to PORT; its RESPONSE has been seen."""
    async with vsock(guest) as (device, guest), device.listen(PORT) as listener:
        guest.send(Op.REQUEST, GUEST_PORT, PORT, buf_alloc=PLENTY)
        assert ops(await guest.settled()) == [Op.RESPONSE]
        async with await listener.accept() as stream:
            yield device, guest, stream


def ops(packets: list[Received]) -> list[int]:
    return [packet.op for packet in packets]


def data(packets: list[Received]) -> bytes:
    return b"".join(packet.payload for packet in packets)


async def read_exactly(stream: trio.SocketStream, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = await stream.receive_some(length - len(received))
        assert part, f"end-of-file after {len(received)} bytes of {length}"
        received += part
    return received


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_fc_1751_ch_3497_an_empty_read_is_no_error_and_the_stream_goes_on() -> None:
    async with connected() as (_device, guest, stream):
        # A length that fills its RX buffer to the last byte makes the device read once more and
        # find nothing there.
        for round_ in range(100):
            sent = bytes([round_]) * (guest.rx_buffer_bytes - HEADER_BYTES)
            await stream.send_all(sent)
            assert data(await guest.settled()) == sent


async def test_fc_6031_without_rx_buffers_nothing_spins() -> None:
    guest = GuestVsock(queue_size=2)
    async with connected(guest) as (_device, _, stream):
        guest.auto_rx = False
        await stream.send_all(bytes(100_000))
        # Never returns while any task is runnable.
        await trio.testing.wait_all_tasks_blocked(cushion=0.02)
        steps = await steps_within(0.02)
        assert steps <= 2
        guest.auto_rx = True
        assert len(data(await guest.settled())) == 100_000


async def steps_within(seconds: float) -> int:
    """How many task steps trio makes while nothing happens but waiting."""

    class Steps(trio.abc.Instrument):
        count = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += 1

    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await trio.testing.wait_all_tasks_blocked(cushion=seconds)
    trio.lowlevel.remove_instrument(steps)
    return steps.count


async def test_fc_6077_many_packets_are_served_by_one_wake_and_one_interrupt() -> None:
    async with connected() as (_device, guest, stream):
        guest.rx.want_interrupt()
        before = guest.rx.irq.triggers
        await stream.send_all(bytes(16 * 4096))
        await trio.testing.wait_all_tasks_blocked()
        assert guest.rx.irq.triggers == before + 1
        assert len(data(await guest.settled())) == 16 * 4096
        rings = guest.tx.doorbell.rings
        for _ in range(20):
            guest.send(Op.RW, GUEST_PORT, PORT, b"abc", buf_alloc=PLENTY)
        assert guest.tx.doorbell.rings == rings + 1
        assert await read_exactly(stream, 60) == b"abc" * 20


async def test_fc_6208_a_host_socket_with_a_full_backlog_refuses_at_once(tmp_path) -> None:
    path = tmp_path / "v.sock"
    device, guest = VsockDevice(VsockConfig(uds_path=path)), GuestVsock()
    async with guest.attached(device):
        clients = []
        with socket.socket(socket.AF_UNIX) as busy:
            busy.bind(f"{path}_{PORT}")
            busy.listen(0)
            while True:
                client = socket.socket(socket.AF_UNIX)
                clients.append(client)
                client.setblocking(False)
                try:
                    client.connect(f"{path}_{PORT}")
                except BlockingIOError:
                    break
            guest.send(Op.REQUEST, GUEST_PORT, PORT)
            assert ops(await guest.settled()) == [Op.RST]
        for client in clients:
            client.close()


async def test_fc_1253_connecting_before_the_guest_listens_is_refused_at_once() -> None:
    async with vsock() as (device, guest), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        with pytest.raises(GuestRefused, match="port 52"):
            await device.connect(52)
        nursery.cancel_scope.cancel()


async def test_kata_2656_a_guest_announces_readiness_by_connecting_out() -> None:
    async with vsock() as (device, guest), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        async with device.listen(PORT) as listener:
            incoming = guest.listen(52)
            hello = await guest.connect(PORT)
            async with await listener.accept(), await device.connect(52) as stream:
                await stream.send_all(b"first try")
                assert await (await incoming.receive()).receive_some() == b"first try"
            assert await hello.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_libkrun_684_a_refused_connection_closes_its_host_socket_at_once() -> None:
    before = descriptors()
    async with vsock() as (device, guest):
        inside = descriptors()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def connect() -> None:
                with pytest.raises(GuestRefused):
                    await device.connect(52)

            (request,) = await guest.settled()
            guest.send(Op.RST, 52, request.header.src_port)
        assert descriptors() == inside
        assert device.statistics.connections == 0
    assert descriptors() == before


async def test_libkrun_806_a_reset_by_the_guest_closes_the_host_socket_at_once() -> None:
    async with connected() as (device, guest, stream):
        guest.send(Op.RST, GUEST_PORT, PORT)
        assert await stream.receive_some() == b""
        assert device.statistics.connections == 0
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"to nobody")


@pytest.mark.parametrize("buf_alloc", [4096, 64 * 1024, 240 * 1024])
async def test_libkrun_772_two_mib_pass_each_way_whatever_the_guests_buffer(
    buf_alloc: int,
) -> None:
    guest = GuestVsock(buf_alloc=buf_alloc)
    sent = os.urandom(2 << 20)
    async with vsock(guest) as (device, _), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        async with device.listen(PORT) as listener:
            far = await guest.connect(PORT)
            async with await listener.accept() as near:
                nursery.start_soon(far.send_all, sent)
                assert await read_exactly(near, len(sent)) == sent
                nursery.start_soon(near.send_all, sent)
                received = b""
                while len(received) < len(sent):
                    received += await far.receive_some()
                assert received == sent
        nursery.cancel_scope.cancel()


async def test_libkrun_772_what_a_slow_reader_leaves_is_kept_whole() -> None:
    async with connected() as (_device, guest, stream):
        sent = os.urandom(256 * 1024)
        for start in range(0, len(sent), 7001):
            guest.send(Op.RW, GUEST_PORT, PORT, sent[start : start + 7001], buf_alloc=PLENTY)
            await guest.settled()
        assert await read_exactly(stream, len(sent)) == sent


async def test_libkrun_267_nothing_is_sent_before_response() -> None:
    guest = GuestVsock(queue_size=2)
    async with vsock(guest) as (device, _), device.listen(PORT) as listener:
        # No RX buffer is free, so that RESPONSE waits while other things come to be owed; and
        # a guest without room makes the device want to ask for credit at once.
        guest.auto_rx = False
        guest.send(Op.RW, 1, PORT, b"nobody's")
        await trio.testing.wait_all_tasks_blocked()
        guest.send(Op.REQUEST, GUEST_PORT, PORT, buf_alloc=0)
        async with await listener.accept() as stream:
            await stream.send_all(b"early")
            await trio.testing.wait_all_tasks_blocked()
            guest.auto_rx = True
            packets = [p for p in await guest.settled() if p.header.dst_port == GUEST_PORT]
            assert ops(packets) == [Op.RESPONSE, Op.CREDIT_REQUEST]
            guest.send(Op.CREDIT_UPDATE, GUEST_PORT, PORT, buf_alloc=100)
            assert data(await guest.settled()) == b"early"


async def test_minimal_869_small_writes_share_an_rx_buffer() -> None:
    guest = GuestVsock(queue_size=2)
    async with connected(guest) as (_device, _, stream):
        guest.auto_rx = False
        guest.received()
        await stream.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(200):
            await stream.send_all(b"0123456789")
        first = guest.received()
        guest.auto_rx = True
        guest.post_rx()
        packets = first + await guest.settled()
        assert len(data(packets)) == 2001
        assert len(packets) <= 3


async def test_libkrun_1719_reconnect_churn_keeps_streams_apart() -> None:
    async with vsock() as (device, guest), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        incoming = guest.listen(52)

        async def echo() -> None:
            async for stream in incoming:
                nursery.start_soon(echo_one, stream)

        async def echo_one(stream) -> None:
            with suppress(BrokenPipeError):
                while part := await stream.receive_some():
                    await stream.send_all(part)
            await stream.aclose()

        nursery.start_soon(echo)
        for round_ in range(150):
            async with await device.connect(52) as stream:
                message = round_.to_bytes(4, "big") * 50
                await stream.send_all(message)
                if round_ % 3:
                    # Every third host goes away in the middle, with bytes on their way.
                    assert await read_exactly(stream, len(message)) == message
        nursery.cancel_scope.cancel()


async def test_libkrun_112_nothing_is_left_of_two_thousand_connections() -> None:
    async with vsock() as (device, guest), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        listener = device.listen(PORT)
        before = descriptors()
        for number in range(2000):
            far = await guest.connect(PORT)
            near = await listener.accept()
            if number % 2:
                await near.aclose()
                assert await far.receive_all() == b""
            else:
                await far.aclose()
                assert await near.receive_some() == b""
                await near.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (device.statistics.connections, descriptors()) == (0, before)
        assert not device._muxer._table.lingering
        nursery.cancel_scope.cancel()


async def test_microvm_nix_297_a_half_close_by_the_guest_is_end_of_file_at_the_host() -> None:
    async with connected() as (_device, guest, stream):
        guest.send(Op.RW, GUEST_PORT, PORT, b"READY=1", buf_alloc=PLENTY)
        guest.send(Op.SHUTDOWN, GUEST_PORT, PORT, flags=Shutdown.SEND, buf_alloc=PLENTY)
        assert await stream.receive_some() == b"READY=1"
        assert await stream.receive_some() == b""
        await stream.send_all(b"the other direction lives")
        assert data(await guest.settled()) == b"the other direction lives"


async def test_fc_5485_a_payload_in_many_descriptors_is_sent_once_when_the_socket_fills() -> None:
    async with connected() as (_device, guest, stream):
        sent = os.urandom(250_000)
        for start in range(0, len(sent), 50_000):
            piece = sent[start : start + 50_000]
            header = guest.packet(Op.RW, GUEST_PORT, PORT, len=len(piece), buf_alloc=PLENTY)
            # Header and data together in the first descriptor, the rest in odd pieces.
            whole = header.pack() + piece
            guest.put_bytes(
                [whole[:1000], *(whole[i : i + 4097] for i in range(1000, 50044, 4097))]
            )
            await guest.settled()
        assert await read_exactly(stream, len(sent)) == sent
