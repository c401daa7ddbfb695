"""Streams between host and guest ports, through the guest's own driver."""

import hashlib
import os

import pytest
import trio

from microvm import GuestRefused, Machine

pytestmark = pytest.mark.linux_guest

MIB = 1024 * 1024
STREAMS = 50
PORT = 7000


async def install(machine: Machine, program: bytes) -> None:
    await machine.run(
        ["sh", "-c", "cat > /tmp/peer && chmod +x /tmp/peer"], stdin=program, check=True
    )


async def send_and_close(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def test_50_concurrent_streams_carry_5_mib_each_way_unchanged(
    vsock_peer: bytes, leaves_nothing: None
) -> None:
    async def exchange(machine: Machine, number: int) -> None:
        data = bytes([number]) * 100 + block[number:] + block[:number]
        stream = await machine.connect(PORT)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send_and_close, stream, data)
            answer = await receive_all(stream)
        assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()

    block = os.urandom(5 * MIB)
    async with Machine() as machine:
        await install(machine, vsock_peer)
        async with machine.spawn(["/tmp/peer", "echo", str(PORT)]) as peer:
            assert await peer.stdout.receive_some() == b"listening\n"
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    nursery.start_soon(exchange, machine, number)


async def test_a_port_nobody_listens_on_is_refused_at_once() -> None:
    async with Machine() as machine:
        await machine.wait_ready()
        with pytest.raises(GuestRefused):
            await machine.connect(4242)


async def test_a_guest_program_dials_a_host_port(vsock_peer: bytes) -> None:
    async with Machine() as machine:
        await install(machine, vsock_peer)
        async with machine.listen(9999) as listener, trio.open_nursery() as nursery:

            async def answer() -> None:
                stream = await listener.accept()
                async with stream:
                    data = await receive_all(stream)
                    await stream.send_all(data.upper())

            nursery.start_soon(answer)
            result = await machine.run(["/tmp/peer", "dial", "9999"], stdin=b"hello", check=True)
    assert result.stdout == b"HELLO"
