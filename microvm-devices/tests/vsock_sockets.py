"""What the tests of the AF_UNIX sockets share: a machine with one, and a client's side."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from microvm.config import VsockConfig
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.testing import GuestVsock

PORT = 1024


@asynccontextmanager
async def machine(
    path: Path, *, serve: bool = True
) -> AsyncIterator[tuple[VsockDevice, GuestVsock]]:
    device, guest = VsockDevice(VsockConfig(uds_path=path)), GuestVsock()
    async with guest.attached(device), trio.open_nursery() as nursery:
        if serve:
            nursery.start_soon(guest.serve)
        yield device, guest
        nursery.cancel_scope.cancel()


async def receive_exactly(client: trio.SocketStream, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = await client.receive_some(length - len(received))
        assert part, received
        received += part
    return received


async def ok(client: trio.SocketStream) -> int:
    """The host port of the OK line; not a byte more is read."""
    line = b""
    while not line.endswith(b"\n"):
        line += await receive_exactly(client, 1)
    word, port = line.split()
    assert word == b"OK"
    return int(port)
