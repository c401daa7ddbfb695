"""`GuestVsock`: the driver's side of virtio-vsock, for tests of devices and of what uses them.

It lies on `microvm.testing.queue_driver` over real guest memory, and comes in two layers. The raw
one puts any packet into TX and hands out what came into RX, so that a test can be a guest of any
manners. On top, `serve` plays a well-behaved kernel: connections with credit both ways, half-close,
streams to send and receive over::

    guest = GuestVsock()
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        stream = await guest.connect(1024)
        await stream.send_all(b"hello")

It is written from the standard, and shares only the header's layout with the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio
import trio.testing

from microvm.abc import Activation, ActiveQueue
from microvm.memory import GuestMemory
from microvm.testing.queue_driver import GuestHeap, QueueDriver
from microvm.virtio.features import RING_FEATURES
from microvm_devices.vsock.packet import (
    HEADER_BYTES,
    VIRTIO_VSOCK_TYPE_STREAM,
    VSOCK_CID_HOST,
    Op,
    Shutdown,
    VsockPacket,
)

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice

_U32: Final = 0xFFFF_FFFF
_MEMORY_BYTES: Final = 64 * 1024 * 1024


@attrs.frozen
class Received:
    """A packet that came into RX."""

    header: VsockPacket
    payload: bytes

    @property
    def op(self) -> int:
        """The header's operation."""
        return self.header.op


class GuestVsock:
    """A guest's vsock driver.

    Args:
        cid: The guest's CID.
        queue_size: Of RX and TX.
        rx_buffer_bytes: Of one RX buffer, header included.
        split: Put header and payload into descriptors of their own, as Linux up to 6.1 does; else
            into one.
        features: What was negotiated.
        buf_alloc: Credit that `serve` gives each connection.
    """

    def __init__(
        self,
        *,
        cid: int = 3,
        queue_size: int = 64,
        rx_buffer_bytes: int = HEADER_BYTES + 4096,
        split: bool = True,
        features: int = RING_FEATURES,
        buf_alloc: int = 64 * 1024,
    ) -> None:
        memory = GuestMemory.anonymous(_MEMORY_BYTES)
        heap = GuestHeap(4096, _MEMORY_BYTES)
        self.cid = cid
        self.split = split
        self.buf_alloc = buf_alloc
        self.rx_buffer_bytes = rx_buffer_bytes
        self.rx, self.tx, self.event = (
            QueueDriver(memory, heap=heap, size=size, features=features)
            for size in (queue_size, queue_size, 8)
        )
        self.auto_rx = True
        """Put RX buffers back as soon as they were used."""
        self.streams: dict[tuple[int, int], GuestStream] = {}
        """By guest port and host port."""
        self._listeners: dict[int, trio.MemorySendChannel[GuestStream]] = {}
        self._next_port = 0x8000_0000
        self._tx_room = trio.Event()
        self._waiting: deque[Sequence[bytes]] = deque()
        self._bases: list[int] = []

    # --- raw -----------------------------------------------------------------------------

    @asynccontextmanager
    async def attached(self, device: VirtioDevice) -> AsyncIterator[None]:
        """Drive a device within the block: its `lifespan`, RX buffers, and its `run`."""
        async with device.lifespan(), self.running(device):
            yield

    @asynccontextmanager
    async def running(self, device: VirtioDevice, *, resume: bool = False) -> AsyncIterator[None]:
        """As `attached`, for a device whose `lifespan` is open already.

        Args:
            device: The device.
            resume: Go on where the last such block ended, as after a pause; else the driver
                begins anew.
        """
        drivers = self.rx, self.tx, self.event
        if not resume:
            device.reset()
            self.post_rx()
            self._bases = [0] * len(drivers)
        queues = [
            driver.queue(next_avail=base) for driver, base in zip(drivers, self._bases, strict=True)
        ]
        active = Activation(
            features=self.rx.features,
            queues=tuple(
                ActiveQueue(queue=queue, doorbell=driver.doorbell, irq=driver.irq)
                for driver, queue in zip(drivers, queues, strict=True)
            ),
            memory=self.rx.memory,
            config_changed=lambda: None,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run, active)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()
        for queue in queues:
            queue.rewind()
        self._bases = [queue.next_avail for queue in queues]

    def post_rx(self, count: int | None = None) -> None:
        """Give the device RX buffers: `count` of them, or all that fit."""
        lengths = [HEADER_BYTES, self.rx_buffer_bytes - HEADER_BYTES]
        if not self.split:
            lengths = [sum(lengths)]
        while self.rx.free_descriptors >= len(lengths) and count != 0:
            self.rx.add([], lengths)
            count = None if count is None else count - 1
        self.rx.kick()

    def put(self, packet: VsockPacket, payload: bytes = b"") -> None:
        """Send a packet as it is, cut into descriptors as `split` says."""
        header = packet.pack()
        if not payload:
            self.put_bytes([header])
        elif self.split:
            self.put_bytes([header, payload])
        else:
            self.put_bytes([header + payload])

    def put_bytes(self, buffers: Sequence[bytes]) -> None:
        """Send anything at all: at once, or when TX has room."""
        self._waiting.append(buffers)
        self.flush_tx()

    def flush_tx(self) -> None:
        """Take back used TX buffers, and put what waits for room."""
        self.tx.used()
        while self._waiting and self.tx.free_descriptors >= len(self._waiting[0]):
            self.tx.add(self._waiting.popleft())
        self.tx.kick()
        if not self._waiting:
            self._tx_room.set()
            self._tx_room = trio.Event()

    def packet(self, op: int, guest_port: int, host_port: int, **fields: int) -> VsockPacket:
        """A header that is right, but for what `fields` say."""
        values = {
            "src_cid": self.cid,
            "dst_cid": VSOCK_CID_HOST,
            "src_port": guest_port,
            "dst_port": host_port,
            "len": 0,
            "type": VIRTIO_VSOCK_TYPE_STREAM,
            "op": op,
            "flags": 0,
            "buf_alloc": self.buf_alloc,
            "fwd_cnt": 0,
        }
        return VsockPacket(**{**values, **fields})

    def send(
        self, op: int, guest_port: int, host_port: int, payload: bytes = b"", **fields: int
    ) -> None:
        """Put a packet that is right, but for what `fields` say."""
        fields.setdefault("len", len(payload))
        self.put(self.packet(op, guest_port, host_port, **fields), payload)

    def received(self) -> list[Received]:
        """The packets that came since the last call."""
        packets = [
            Received(VsockPacket.unpack(used.data), used.data[HEADER_BYTES:])
            for used in self.rx.used()
        ]
        for packet in packets:
            assert packet.header.len == len(packet.payload), packet
            assert packet.header.dst_cid == self.cid, packet
            assert packet.header.src_cid == VSOCK_CID_HOST, packet
        if self.auto_rx and packets:
            self.post_rx()
        return packets

    async def settled(self) -> list[Received]:
        """Let the device do what it can, then as `received`."""
        await trio.testing.wait_all_tasks_blocked()
        packets = self.received()
        while packets:
            await trio.testing.wait_all_tasks_blocked()
            more = self.received()
            if not more:
                break
            packets += more
        return packets

    # --- a kernel ------------------------------------------------------------------------

    async def serve(self) -> None:
        """Be a well-behaved guest until cancelled: handle what comes in, keep RX filled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reap_tx)
            while True:
                for packet in self.received():
                    self._take(packet)
                if not self.rx.want_interrupt():
                    await self.rx.irq.wait()
                else:
                    await trio.lowlevel.checkpoint()

    async def _reap_tx(self) -> None:
        while True:
            self.flush_tx()
            if not self.tx.want_interrupt():
                await self.tx.irq.wait()
            else:
                await trio.lowlevel.checkpoint()

    @property
    def tx_is_full(self) -> bool:
        """Whether packets wait for room in TX."""
        return bool(self._waiting)

    async def tx_room(self) -> None:
        """Wait until nothing waits for TX."""
        while self._waiting:
            await self._tx_room.wait()

    async def connect(self, host_port: int) -> GuestStream:
        """Connect to a host port.

        Raises:
            ConnectionRefusedError: the answer was RST.
        """
        port = self._next_port
        self._next_port += 1
        stream = GuestStream(self, port, host_port)
        self.streams[port, host_port] = stream
        await self.tx_room()
        stream.send_packet(Op.REQUEST)
        while not stream.established:
            if stream.closed:
                raise ConnectionRefusedError(f"host port {host_port}")
            await stream.changed()
        return stream

    def listen(self, port: int) -> trio.MemoryReceiveChannel[GuestStream]:
        """Accept connections of the host to a guest port."""
        send, receive = trio.open_memory_channel["GuestStream"](1024)
        self._listeners[port] = send
        return receive

    def _take(self, packet: Received) -> None:
        header = packet.header
        key = header.dst_port, header.src_port
        stream = self.streams.get(key)
        if stream is not None:
            stream.take(packet)
        elif header.op == Op.REQUEST and header.dst_port in self._listeners:
            stream = self.streams[key] = GuestStream(self, *key)
            stream.established = True
            stream.take_credit(header)
            stream.send_packet(Op.RESPONSE)
            self._listeners[header.dst_port].send_nowait(stream)
        elif header.op != Op.RST:
            self.send(Op.RST, *key)


class GuestStream:
    """One connection in the guest, as a program there has it."""

    def __init__(self, guest: GuestVsock, guest_port: int, host_port: int) -> None:
        self.guest = guest
        self.guest_port = guest_port
        self.host_port = host_port
        self.established = False
        self.closed = False
        """RST came, or was sent."""
        self.peer_shutdown = 0
        self.tx_cnt = 0
        self.rx_cnt = 0
        self.fwd_cnt = 0
        self.peer_buf_alloc = 0
        self.peer_fwd_cnt = 0
        self._told_fwd_cnt = 0
        self._data: deque[bytes] = deque()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Wait for the next packet."""
        await self._changed.wait()

    def send_packet(self, op: int, payload: bytes = b"", **fields: int) -> None:
        """Put a packet of this connection."""
        self._told_fwd_cnt = self.fwd_cnt
        self.guest.send(
            op, self.guest_port, self.host_port, payload, fwd_cnt=self.fwd_cnt, **fields
        )

    def take_credit(self, header: VsockPacket) -> None:
        """Learn what the host is ready to take."""
        self.peer_buf_alloc = header.buf_alloc
        self.peer_fwd_cnt = header.fwd_cnt

    @property
    def peer_free(self) -> int:
        """How much may be sent.

        What the host is ready to take and, as recent Linux has it, no further ahead than the
        size of the own buffer.
        """
        window = min(self.peer_buf_alloc, self.guest.buf_alloc)
        return window - ((self.tx_cnt - self.peer_fwd_cnt) & _U32)

    def take(self, packet: Received) -> None:
        """A packet from the host."""
        header = packet.header
        op = header.op
        assert op != Op.REQUEST, "REQUEST for a connection that is there"
        assert self.established or op in (Op.RESPONSE, Op.RST), f"{Op(op).name} before RESPONSE"
        if op == Op.RST:
            self._end()
        else:
            self.take_credit(header)
        if op == Op.RESPONSE:
            assert not self.established
            self.established = True
        elif op == Op.RW:
            assert not self.peer_shutdown & Shutdown.SEND, "data after SHUTDOWN(SEND)"
            self.rx_cnt = (self.rx_cnt + header.len) & _U32
            assert (self.rx_cnt - self.fwd_cnt) & _U32 <= self.guest.buf_alloc, "over credit"
            self._data.append(packet.payload)
        elif op == Op.CREDIT_REQUEST:
            self.send_packet(Op.CREDIT_UPDATE)
        elif op == Op.SHUTDOWN:
            self.peer_shutdown |= header.flags
            if self.peer_shutdown == Shutdown.BOTH and not self._data:
                self.reset()
        self._changed.set()
        self._changed = trio.Event()

    def _end(self) -> None:
        self.closed = True
        self.peer_shutdown = int(Shutdown.BOTH)
        self.guest.streams.pop((self.guest_port, self.host_port), None)

    def reset(self) -> None:
        """Send RST: the connection is no more."""
        if not self.closed:
            self.send_packet(Op.RST)
            self._end()

    async def send_all(self, data: bytes) -> None:
        """Send, within the host's credit, in packets of 64 KiB at most.

        Raises:
            BrokenPipeError: the host does not receive any more.
        """
        view = memoryview(data)
        while view:
            if self.peer_shutdown & Shutdown.RECEIVE:
                raise BrokenPipeError("the host has shut down receiving")
            if self.peer_free <= 0:
                await self.changed()
                continue
            if self.guest.tx_is_full:
                await self.guest.tx_room()
                continue
            piece = view[: min(self.peer_free, 64 * 1024)]
            self.tx_cnt = (self.tx_cnt + len(piece)) & _U32
            self.send_packet(Op.RW, bytes(piece))
            view = view[len(piece) :]
        await trio.lowlevel.checkpoint()

    async def receive_some(self) -> bytes:
        """The next bytes; empty at the host's end-of-file."""
        while not self._data:
            if self.peer_shutdown & Shutdown.SEND:
                return b""
            await self.changed()
        data = self._data.popleft()
        self.fwd_cnt = (self.fwd_cnt + len(data)) & _U32
        unseen = (self.rx_cnt - self._told_fwd_cnt) & _U32
        if not self.closed and unseen > self.guest.buf_alloc // 2:
            await self.guest.tx_room()
            if not self.closed:
                self.send_packet(Op.CREDIT_UPDATE)
        await trio.lowlevel.checkpoint()
        return data

    async def receive_all(self) -> bytes:
        """Everything until the host's end-of-file."""
        parts = []
        while part := await self.receive_some():
            parts.append(part)
        return b"".join(parts)

    def shutdown(self, flags: int) -> None:
        """Send SHUTDOWN."""
        if not self.closed:
            self.send_packet(Op.SHUTDOWN, flags=flags)

    async def aclose(self) -> None:
        """Close as Linux does: RST if the host has ended both directions, else SHUTDOWN and wait.

        Returns when the connection is gone.
        """
        if self.peer_shutdown == Shutdown.BOTH:
            self.reset()
        self.shutdown(Shutdown.BOTH)
        while not self.closed:
            await self.changed()
