"""What the tests of guests that break virtio-vsock's rules share: a connection to be harmed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from microvm.config import VsockConfig
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import Op
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
