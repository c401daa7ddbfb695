"""The way through a guest whose agent means no good. Row 88."""

import pytest
import trio

from microvm.abc import GuestChannels
from microvm.errors import GuestError, GuestRefused
from microvm_guest.protocol.fields import FieldTag, encode_field
from microvm_guest.protocol.frames import FrameType
from microvm_guest.socks5 import through
from microvm_guest.socks5.through import GuestSocks5
from microvm_guest.testing import agent_pair


class NoChannels(GuestChannels):
    """Nothing is served."""

    async def connect(self, port):
        raise GuestRefused("nobody")

    def listen(self, port):
        raise NotImplementedError


@pytest.mark.parametrize("said", [b"", b"127.0.0.1 1080"])
async def test_row_88_a_server_that_does_not_say_where_it_is_is_given_up(monkeypatch, said):
    monkeypatch.setattr(through, "START_WITHIN_S", 0.2)
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def script():
            await agent.greet()
            await agent.expect(FrameType.STATUS)
            await agent.send(FrameType.STATUS, payload=encode_field(FieldTag.PID, 1))
            stream = await agent.start()
            if said:
                await agent.send(FrameType.STDOUT, stream, said)

        nursery.start_soon(script)
        with pytest.raises(GuestError, match="did not say where it is"), trio.fail_after(30):
            await GuestSocks5(client, NoChannels()).handler(None)


@pytest.mark.parametrize("line", [b"x\n", b"\xff 1 1\n", b"host 1 0\n", b"127.0.0.1 99999 0\n"])
async def test_row_87_a_server_that_says_nonsense_has_not_started(line):
    async with agent_pair() as (client, agent), trio.open_nursery() as nursery:

        async def script():
            await agent.greet()
            await agent.expect(FrameType.STATUS)
            await agent.send(FrameType.STATUS, payload=encode_field(FieldTag.PID, 1))
            stream = await agent.start()
            await agent.send(FrameType.STDOUT, stream, line)
            await agent.send(FrameType.STDERR, stream, b"no such\n")

        nursery.start_soon(script)
        with pytest.raises(GuestError, match="did not start: 'no such'"), trio.fail_after(30):
            await GuestSocks5(client, NoChannels()).handler(None)
