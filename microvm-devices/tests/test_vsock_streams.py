"""Streams between a well-behaved guest and programs on the host."""

import hashlib
import os

import attrs
import pytest
import trio
import trio.testing

from microvm.config import VsockConfig
from microvm.testing.queue_driver import FakeIrqLine, activation
from microvm.virtio.features import RING_FEATURES, VERSION_1
from microvm_devices.vsock import limits
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import HEADER_BYTES, Op, Shutdown
from microvm_devices.vsock.testing import GuestStream, GuestVsock

PORT = 1024
GUESTS = [
    pytest.param({}, id="as Linux 6.1"),
    pytest.param({"split": False, "rx_buffer_bytes": 3776}, id="as Linux 6.6"),
    pytest.param({"features": VERSION_1}, id="no event index"),
    pytest.param({"queue_size": 2, "rx_buffer_bytes": HEADER_BYTES + 100}, id="tiny"),
    pytest.param({"queue_size": 256, "rx_buffer_bytes": HEADER_BYTES + 65536}, id="large"),
]


class Pair:
    """A connected pair of streams, whoever began."""

    def __init__(self, device: VsockDevice, guest: GuestVsock) -> None:
        self.device = device
        self.guest = guest

    async def by_guest(self) -> tuple[GuestStream, trio.SocketStream]:
        async with self.device.listen(PORT) as listener:
            far = await self.guest.connect(PORT)
            return far, await listener.accept()

    async def by_host(self) -> tuple[GuestStream, trio.SocketStream]:
        incoming = self.guest.listen(52)
        near = await self.device.connect(52)
        return await incoming.receive(), near


async def read_all(near: trio.SocketStream) -> bytes:
    return b"".join([part async for part in near])


@pytest.mark.parametrize("options", GUESTS)
async def test_bytes_pass_both_ways_at_once_for_any_kind_of_driver(options) -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock(**options)
    up, down = os.urandom(300_000), os.urandom(300_000)
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        far, near = await Pair(device, guest).by_guest()
        async with near, trio.open_nursery() as transfers:

            @transfers.start_soon
            async def host_writes() -> None:
                await near.send_all(down)
                await near.send_eof()

            @transfers.start_soon
            async def guest_writes() -> None:
                await far.send_all(up)
                far.shutdown(Shutdown.SEND)

            @transfers.start_soon
            async def host_reads() -> None:
                assert await read_all(near) == up

            assert await far.receive_all() == down
        nursery.cancel_scope.cancel()


async def test_fifty_streams_at_once_carry_equal_hashes_both_ways() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock(queue_size=256)
    block = os.urandom(1 << 20)
    done: list[int] = []

    async def host(listener) -> None:
        async with await listener.accept() as near:
            digest = hashlib.sha256()
            async with trio.open_nursery() as both:

                @both.start_soon
                async def write() -> None:
                    await near.send_all(block)
                    await near.send_eof()

                async for part in near:
                    digest.update(part)
            assert digest.digest() == hashlib.sha256(block).digest()
            done.append(1)

    async def program() -> None:
        far = await guest.connect(PORT)
        digest = hashlib.sha256()
        async with trio.open_nursery() as both:

            @both.start_soon
            async def write() -> None:
                await far.send_all(block)
                far.shutdown(Shutdown.SEND)

            while part := await far.receive_some():
                digest.update(part)
        assert digest.digest() == hashlib.sha256(block).digest()
        done.append(1)

    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        async with device.listen(PORT) as listener, trio.open_nursery() as streams:
            for _ in range(50):
                streams.start_soon(host, listener)
                streams.start_soon(program)
        assert len(done) == 100
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("begun_by", ["by_guest", "by_host"])
@pytest.mark.parametrize(
    "order",
    [
        ("guest ends", "host ends"),
        ("host ends", "guest ends"),
        ("guest ends", "host closes"),
        ("host ends", "guest closes"),
        ("guest closes",),
        ("host closes",),
        ("host ends", "host closes"),
        ("guest resets",),
        ("guest ends", "guest resets"),
        ("guest stops reading", "host ends", "guest closes"),
        ("guest stops reading", "guest ends"),
        ("host stops reading", "host ends"),
        ("host stops reading", "guest closes"),
    ],
)
async def test_half_close_matrix(begun_by: str, order: tuple[str, ...]) -> None:
    """However a connection ends, what was sent before is delivered and nothing of it is left."""
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        far, near = await getattr(Pair(device, guest), begun_by)()
        await far.send_all(b"from guest")
        await near.send_all(b"from host")
        assert await near.receive_some() == b"from guest"
        assert await far.receive_some() == b"from host"
        for step in order:
            if step == "guest ends":
                await far.send_all(b"last of guest")
                far.shutdown(Shutdown.SEND)
                assert await read_all(near) == b"last of guest"
            elif step == "host ends":
                if "guest stops reading" not in order:
                    await near.send_all(b"last of host")
                await near.send_eof()
                if "guest stops reading" not in order:
                    assert await far.receive_all() == b"last of host"
            elif step == "guest closes":
                nursery.start_soon(far.aclose)
                assert await read_all(near) == b""
            elif step == "host closes":
                await near.aclose()
                assert await far.receive_all() == b""
            elif step == "guest resets":
                far.reset()
                assert await read_all(near) == b""
            elif step == "guest stops reading":
                far.shutdown(Shutdown.RECEIVE)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BrokenResourceError):
                    await near.send_all(b"not wanted")
            elif step == "host stops reading":
                near.socket.shutdown(trio.socket.SHUT_RD)
                await far.send_all(b"not wanted")
                await trio.testing.wait_all_tasks_blocked()
                assert far.peer_shutdown & Shutdown.RECEIVE
        await trio.testing.wait_all_tasks_blocked()
        assert (device.statistics.connections, guest.streams) == (0, {})
        await near.aclose()
        nursery.cancel_scope.cancel()


async def test_a_half_closed_stream_goes_on_for_megabytes_the_other_way() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    sent = os.urandom(3 << 20)
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        far, near = await Pair(device, guest).by_host()
        async with near:
            await near.send_eof()
            assert await far.receive_all() == b""
            nursery.start_soon(far.send_all, sent)
            received = b""
            while len(received) < len(sent):
                received += await near.receive_some(65536)
            assert received == sent
        nursery.cancel_scope.cancel()


async def test_streams_share_the_guests_buffers_in_turn() -> None:
    """One stream that could fill RX for ever does not keep another from its turn."""
    device, guest = VsockDevice(VsockConfig()), GuestVsock(queue_size=8)
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        loud_far, loud = await Pair(device, guest).by_guest()
        soft_far, soft = await Pair(device, guest).by_guest()
        async with loud, soft:

            @nursery.start_soon
            async def flood() -> None:
                while True:
                    await loud.send_all(bytes(65536))

            @nursery.start_soon
            async def drain() -> None:
                while True:
                    await loud_far.receive_some()

            for _ in range(50):
                await soft.send_all(b"ping")
                assert await soft_far.receive_some() == b"ping"
            nursery.cancel_scope.cancel()


async def test_streams_with_small_windows_carry_as_much() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    sent = os.urandom(1 << 20)
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        idle = [await Pair(device, guest).by_guest() for _ in range(limits.FULL_WINDOWS)]
        far, near = await Pair(device, guest).by_guest()
        async with near:
            assert far.peer_buf_alloc == limits.SMALL_BUF_ALLOC
            nursery.start_soon(far.send_all, sent)
            received = b""
            while len(received) < len(sent):
                received += await near.receive_some(3000)
            assert received == sent
        for _, stream in idle:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    assert device.statistics.connections == 0


async def test_full_windows_come_back_when_connections_end() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        for _ in range(2 * limits.FULL_WINDOWS):
            far, near = await Pair(device, guest).by_guest()
            assert far.peer_buf_alloc == limits.BUF_ALLOC
            await far.aclose()
            await near.aclose()
        nursery.cancel_scope.cancel()


async def test_streams_take_turns_however_few_buffers_the_guest_gives() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock(queue_size=2)
    async with guest.attached(device), device.listen(PORT) as listener:
        streams = []
        for port in (1, 2, 3):
            guest.send(Op.REQUEST, port, PORT, buf_alloc=1 << 30)
            await guest.settled()
            streams.append(await listener.accept())
        guest.auto_rx = False
        for stream in streams:
            await stream.send_all(bytes(100_000))
        ports = []
        for _ in range(30):
            await trio.testing.wait_all_tasks_blocked()
            ports += [packet.header.dst_port for packet in guest.received()]
            guest.post_rx(1)
        # The first buffer was there before the others had anything to say.
        assert sorted(ports[1:4]) == [1, 2, 3]
        assert {ports.count(port) for port in (1, 2, 3)} <= {9, 10, 11}
        for stream in streams:
            await stream.aclose()


async def test_more_buffers_than_a_batch_are_filled_by_one_doorbell() -> None:
    room = 10
    guest = GuestVsock(queue_size=1024, split=False, rx_buffer_bytes=HEADER_BYTES + room)
    device = VsockDevice(VsockConfig())
    async with guest.attached(device), device.listen(PORT) as listener:
        guest.send(Op.REQUEST, 1, PORT, buf_alloc=1 << 30)
        await guest.settled()
        async with await listener.accept() as stream:
            await stream.send_all(bytes(900 * room))
            await trio.testing.wait_all_tasks_blocked()
            assert len(guest.received()) == 900


@pytest.mark.parametrize("features", [VERSION_1, RING_FEATURES])
async def test_a_guest_is_not_asked_to_ring_while_it_has_buffers_left(features: int) -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock(queue_size=8, features=features)
    async with guest.attached(device), device.listen(PORT) as listener:
        guest.send(Op.REQUEST, 1, PORT, buf_alloc=1 << 30)
        await guest.settled()
        async with await listener.accept() as stream:
            # Runs dry, and is refilled: now it does want to hear.
            await stream.send_all(bytes(100_000))
            await guest.settled()
            rings = guest.rx.doorbell.rings
            for _ in range(20):
                await stream.send_all(b"one packet")
                await guest.settled()
            assert guest.rx.doorbell.rings == rings


class BusyLine(FakeIrqLine):
    """A guest that puts a packet when it is interrupted, and sees that no doorbell is wanted."""

    def __init__(self, guest: GuestVsock) -> None:
        super().__init__()
        self.guest = guest
        self.left = 3

    def trigger(self) -> None:
        super().trigger()
        if self.left:
            self.left -= 1
            self.guest.tx.want_interrupt()
            self.guest.send(Op.RST, 9, 9)
            self.guest.tx.want_interrupt()


async def test_a_packet_put_while_the_device_falls_asleep_is_seen() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    line = BusyLine(guest)
    active = activation(guest.rx, guest.tx, guest.event)
    rx, tx, event = active.queues
    active = attrs.evolve(active, queues=(rx, attrs.evolve(tx, irq=line), event))
    async with device.lifespan(), trio.open_nursery() as nursery:
        nursery.start_soon(device.run, active)
        await trio.testing.wait_all_tasks_blocked()
        guest.tx.want_interrupt()
        guest.send(Op.RST, 9, 9)
        await trio.testing.wait_all_tasks_blocked()
        assert line.left == 0
        guest.tx.used()
        assert guest.tx.free_descriptors == guest.tx.size
        nursery.cancel_scope.cancel()


async def test_other_tasks_run_while_a_guest_floods_tx() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock(queue_size=1024)

    class Steps(trio.abc.Instrument):
        count = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += "_serve_tx" in task.name

    async with guest.attached(device):
        for _ in range(10 * limits.TX_BATCH):
            guest.send(Op.RST, 9, 9)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(steps)
        assert steps.count >= 10
