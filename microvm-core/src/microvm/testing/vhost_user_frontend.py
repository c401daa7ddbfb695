"""A vhost-user front end in miniature: a device under the real server, without a VMM.

`front_end` puts a device behind `serve_vhost_user`, over a socket pair and a memfd as QEMU has
them, and speaks QEMU's part in QEMU's order (see `microvm.virtio.vhost_user.session`)::

    async with front_end(device, queues=2) as vmm:
        await vmm.start()
        receive, transmit = vmm.queues
        transmit.add([packet])
        transmit.kick()
        await transmit.irq.wait()
        bases = await vmm.stop()

Linux only, as memfd and eventfd are.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from microvm.memory import GuestMemory, GuestRegion
from microvm.testing.queue_driver import FakeDoorbell, FakeIrqLine, GuestHeap, QueueDriver
from microvm.virtio.features import RING_FEATURES
from microvm.virtio.queue import MAX_INDEX
from microvm.virtio.vhost_user.message import (
    CONFIG_CHANGED,
    F_PROTOCOL_FEATURES,
    HEADER,
    U64,
    ChannelFd,
    ConfigSpace,
    Empty,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Request,
    VringAddresses,
    VringFd,
    VringState,
    encode_payload,
    encode_request,
)
from microvm.virtio.vhost_user.server import serve_vhost_user

if TYPE_CHECKING:
    from microvm.abc import VirtioDevice
    from microvm.virtio.pause_notice import PauseNotice

USER_BASE = 0x7F00_0000_0000
"""Where this front end says it has mapped guest address 0."""
LOW_END = 0xF0000
HIGH_START = 0x100000
"""Guest RAM has a hole below 1 MiB, as QEMU's `microvm` machine leaves for its firmware."""

DEFAULT_MEMORY_BYTES = 4 * 1024 * 1024

_NOTHING: Final = Empty()


class EventFdDoorbell(FakeDoorbell):
    """Rings a kick eventfd. The device's end of it is the server's."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        """Add to the counter."""
        self.rings += 1
        os.eventfd_write(self.fd, 1)


class EventFdIrqLine(FakeIrqLine):
    """Waits for a call eventfd."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    async def wait(self) -> None:
        """Return once the device has interrupted since the last return."""
        await trio.lowlevel.wait_readable(self.fd)
        self.triggers += os.eventfd_read(self.fd)


class VhostUserFrontEnd:
    """The front end's half of a connection, and the guest's memory and queues behind it.

    Args:
        sock: One end of a Unix stream socket pair; the other is the back end's.
        queues: How many rings the guest's driver sets up.
        queue_size: Descriptors of each.
        memory_bytes: Guest RAM with its hole; 2 MiB or more.
        takes_protocol_features: False speaks as QEMU did up to 7.1: PROTOCOL_FEATURES is not
            accepted in SET_FEATURES, and rings are never enabled.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        queues: int,
        queue_size: int = 16,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        takes_protocol_features: bool = True,
    ) -> None:
        self._peer = trio.socket.from_stdlib_socket(sock)
        self._queue_size = queue_size
        self._takes_protocol_features = takes_protocol_features
        self.memory_fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, memory_bytes)
        self._mapping = mmap.mmap(self.memory_fd, memory_bytes)
        with memoryview(self._mapping) as whole:
            low = GuestRegion(start=0, view=whole[:LOW_END])
            high = GuestRegion(start=HIGH_START, view=whole[HIGH_START:])
        self.memory = GuestMemory([low, high])
        self.memory_table = MemoryTable(
            regions=tuple(
                MemoryRegion(
                    guest_address=region.start,
                    size=len(region.view),
                    user_address=USER_BASE + region.start,
                    mmap_offset=region.start,
                )
                for region in self.memory.regions
            )
        )
        """What `set_memory` sends, with `memory_fds`; a test may send something else."""
        self.memory_fds = [self.memory_fd] * len(self.memory_table.regions)
        self.doorbells = [EventFdDoorbell() for _ in range(queues)]
        self.irqs = [EventFdIrqLine() for _ in range(queues)]
        self.errors = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(queues)]
        self.channel, self._channel_of_back_end = socket.socketpair()
        """Where requests of the back end arrive, if it has asked for such a channel."""
        self.offered = 0
        """What the back end offers, from `realize` on."""
        self.features = RING_FEATURES
        """What the guest's driver accepts; set it before `start`."""
        self.queues: tuple[QueueDriver, ...] = ()
        """The driver's halves, from `reset` on."""
        self.bases = [0] * queues
        """Where the back end said the rings stood, from `stop` on."""
        self.reset()

    def reset(self) -> None:
        """Reset the driver: rings and buffers anew. The device must be stopped."""
        for queue in self.queues:
            queue.release()
        heap = GuestHeap(HIGH_START, self.memory.regions[-1].end)
        self.bases = [0] * len(self.doorbells)
        self.queues = tuple(
            QueueDriver(
                self.memory,
                heap=heap,
                size=self._queue_size,
                features=self.features,
                doorbell=doorbell,
                irq=irq,
            )
            for doorbell, irq in zip(self.doorbells, self.irqs, strict=True)
        )

    # --- what QEMU does, and when --------------------------------------------------------------

    async def realize(self) -> None:
        """Introduce ourselves, as when the VMM creates the device."""
        self.offered = await self.ask_u64(Request.GET_FEATURES)
        protocol = ProtocolFeature(await self.ask_u64(Request.GET_PROTOCOL_FEATURES))
        await self.tell(Request.SET_PROTOCOL_FEATURES, U64(value=protocol))
        await self.ask_u64(Request.GET_QUEUE_NUM)
        if protocol & ProtocolFeature.BACKEND_REQ:
            fds = [self._channel_of_back_end.fileno()]
            await self.tell(Request.SET_BACKEND_REQ_FD, ChannelFd(), fds)
        await self.tell(Request.SET_OWNER)
        for index, (irq, error) in enumerate(zip(self.irqs, self.errors, strict=True)):
            await self.tell(Request.SET_VRING_CALL, VringFd(index=index, has_fd=True), [irq.fd])
            await self.tell(Request.SET_VRING_ERR, VringFd(index=index, has_fd=True), [error])

    async def start(self) -> None:
        """Set the device up and let it run, as when the driver sets DRIVER_OK or the VM goes on.

        Rings begin at `bases`. Returns when the back end has seen everything.
        """
        own = F_PROTOCOL_FEATURES if self._takes_protocol_features else 0
        await self.tell(Request.SET_FEATURES, U64(value=self.features | own))
        await self.set_memory()
        for index, queue in enumerate(self.queues):
            layout = queue.layout
            state = VringState(index=index, num=layout.size)
            await self.tell(Request.SET_VRING_NUM, state)
            await self.tell(Request.SET_VRING_BASE, VringState(index=index, num=self.bases[index]))
            addresses = VringAddresses(
                index=index,
                flags=0,
                desc=USER_BASE + layout.desc,
                used=USER_BASE + layout.used,
                avail=USER_BASE + layout.avail,
                log=layout.used,
            )
            await self.tell(Request.SET_VRING_ADDR, addresses)
            kick = [self.doorbells[index].fd]
            await self.tell(Request.SET_VRING_KICK, VringFd(index=index, has_fd=True), kick)
        if self._takes_protocol_features:
            await self.enable(True)
        await self.ask_u64(Request.GET_FEATURES)

    async def enable(self, on: bool) -> None:
        """Enable or disable every ring."""
        for index in range(len(self.queues)):
            await self.tell(Request.SET_VRING_ENABLE, VringState(index=index, num=int(on)))

    async def stop(self) -> list[int]:
        """Stop the device, as when the driver resets it or the VM is paused.

        Returns:
            Where the rings stood: `bases`, with which `start` goes on unless `reset` is called.
        """
        if self._takes_protocol_features:
            await self.enable(False)
        for index in range(len(self.queues)):
            asked = VringState(index=index, num=0)
            answer = await self.ask(Request.GET_VRING_BASE, asked)
            self.bases[index] = int.from_bytes(answer[4:8], "little") & MAX_INDEX
        return self.bases

    async def set_memory(self) -> None:
        """Send the memory table, and wait for its acknowledgement."""
        answer = await self.ask(
            Request.SET_MEM_TABLE, self.memory_table, self.memory_fds, need_reply=True
        )
        assert answer == bytes(8), "The back end can't map the guest's memory."

    async def config_change(self) -> None:
        """Return once the back end has told of a change of its configuration space."""
        await trio.lowlevel.wait_readable(self.channel)
        assert self.channel.recv(len(CONFIG_CHANGED)) == CONFIG_CHANGED

    async def read_config(self, offset: int, length: int) -> bytes:
        """Part of the device's configuration space."""
        space = ConfigSpace(offset=offset, flags=0, data=bytes(length))
        return (await self.ask(Request.GET_CONFIG, space))[12:]

    # --- messages ------------------------------------------------------------------------------

    async def tell(
        self,
        request: Request,
        payload: Payload = _NOTHING,
        fds: Sequence[int] = (),
    ) -> None:
        """Send a message that has no reply."""
        await self.send(encode_request(request, encode_payload(payload)), fds)

    async def ask(
        self,
        request: Request,
        payload: Payload = _NOTHING,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> bytes:
        """Send a message and return its reply's payload."""
        await self.send(
            encode_request(request, encode_payload(payload), need_reply=need_reply), fds
        )
        number, _, size = HEADER.unpack(await self._receive_exactly(HEADER.size))
        assert number == request, f"{Request(number).name} was answered, not {request.name}."
        return await self._receive_exactly(size)

    async def ask_u64(self, request: Request) -> int:
        """Ask for a number."""
        return int.from_bytes(await self.ask(request), "little")

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes and descriptors, whatever they mean."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = await self._peer.sendmsg([data], rights)
        while sent < len(data):
            sent += await self._peer.send(data[sent:])

    async def _receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self._peer.recv(size - len(data))
            assert part, "The back end hung up."
            data += part
        return data

    def hang_up(self) -> None:
        """Close the connection; the guest's memory stays."""
        self._peer.close()

    def close(self) -> None:
        """Close the connection, and give the guest's memory and every descriptor back."""
        self.hang_up()
        self.channel.close()
        self._channel_of_back_end.close()
        for queue in self.queues:
            queue.release()
        self.memory.release()
        self._mapping.close()
        signals = [doorbell.fd for doorbell in self.doorbells] + [irq.fd for irq in self.irqs]
        for fd in (self.memory_fd, *self.errors, *signals):
            os.close(fd)


@asynccontextmanager
async def front_end(
    device: VirtioDevice,
    *,
    queues: int,
    queue_size: int = 16,
    takes_protocol_features: bool = True,
    pause: PauseNotice | None = None,
) -> AsyncIterator[VhostUserFrontEnd]:
    """Serve `device` to a front end that has been realized and not started.

    With `pause`, what the test announces there is what the server knows of pauses.

    Leaving the block hangs up and waits for the server to end by itself; what the server
    raises comes out of the block, in an exception group.
    """
    ours, theirs = socket.socketpair()
    vmm = VhostUserFrontEnd(
        ours,
        queues=queues,
        queue_size=queue_size,
        takes_protocol_features=takes_protocol_features,
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_vhost_user, theirs, device, None, pause)
            try:
                await vmm.realize()
                yield vmm
            finally:
                vmm.hang_up()
    finally:
        vmm.close()
