"""Bytes both ways: what a TCP client is shown when the other stream ends well, or does not."""

import pytest
import trio

from microvm.forwards.carry import carry


class Guests(trio.abc.HalfCloseableStream):
    """Takes everything, gives a part, and ends or breaks."""

    def __init__(self, breaks):
        self._breaks = breaks
        self._parts = [b"a part"]

    async def receive_some(self, max_bytes=None):
        await trio.lowlevel.checkpoint()
        if self._parts:
            return self._parts.pop()
        if self._breaks:
            raise trio.BrokenResourceError
        return b""

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def send_eof(self):
        await trio.lowlevel.checkpoint()

    async def aclose(self):
        await trio.lowlevel.checkpoint()


async def read_to_the_end(client):
    return b"".join([chunk async for chunk in client])


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_client_that_only_reads_is_reset_when_its_source_breaks(breaks):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with (
        listener,
        await trio.open_tcp_stream(*listener.socket.getsockname()) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(carry, await listener.accept(), Guests(breaks))
        with trio.fail_after(30):
            if breaks:
                with pytest.raises(trio.BrokenResourceError):
                    await read_to_the_end(client)
            else:
                assert await read_to_the_end(client) == b"a part"
        nursery.cancel_scope.cancel()
