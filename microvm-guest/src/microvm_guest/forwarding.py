"""Forwards through the agent: a stream to any socket in the guest, and sockets that lead out.

Each is a connection of its own to the agent's forward port, so that no payload passes the
connection that commands use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from microvm.errors import GuestError, GuestGone, GuestRefused
from microvm.forwards.addresses import TcpAddress
from microvm_guest.ports import FORWARD_PORT
from microvm_guest.protocol import forwards

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

    from microvm.abc import GuestChannels
    from microvm.forwards.addresses import UnixAddress

REPLY_WITHIN_S: Final = 150.0
"""For an agent that never answers. Longer than Linux tries a TCP connection that nobody answers
(tcp(7), tcp_syn_retries: 127 s), so that the guest's own error comes first."""


async def connect_to(
    channels: GuestChannels, address: TcpAddress | UnixAddress
) -> HalfCloseableStream:
    """As `Guest.connect_to`."""
    stream, _ = await _ask(channels, forwards.encode_connect(address), f"connect to {address}")
    return stream


@asynccontextmanager
async def listen_at(
    channels: GuestChannels, address: TcpAddress | UnixAddress, host_port: int
) -> AsyncIterator[TcpAddress | UnixAddress]:
    """As `Guest.listen_at`; the agent listens for as long as the connection lasts."""
    request = forwards.encode_listen(address, host_port)
    stream, port = await _ask(channels, request, f"listen at {address}")
    async with stream:
        yield attrs.evolve(address, port=port) if isinstance(address, TcpAddress) else address


async def datagrams_at(
    channels: GuestChannels, address: TcpAddress
) -> tuple[HalfCloseableStream, int]:
    """Have the agent take datagrams at a UDP port of the guest's.

    Returns:
        A stream of datagrams each behind its length (`forwards.DATAGRAM`), both ways, for the one
        program that sends first; and the port, chosen if it was 0.

    Raises:
        GuestError: the guest can't have that port, or the agent is too old.
    """
    request = forwards.encode_datagrams(address)
    return await _ask(channels, request, f"take datagrams at {address}")


async def _ask(
    channels: GuestChannels, request: bytes, what: str
) -> tuple[HalfCloseableStream, int]:
    """Say a request and read its reply, not a byte more.

    Raises:
        GuestRefused: nothing listens there.
        GuestError: another error of the guest's, or no answer.
    """
    try:
        stream = await channels.connect(FORWARD_PORT)
    except GuestRefused as error:
        raise GuestError(
            "The guest's agent takes no forwards.",
            remedy="Its image is older than this microvm: rebuild it (microvm image build).",
        ) from error
    try:
        with trio.fail_after(REPLY_WITHIN_S):
            await stream.send_all(request)
            errno, port = forwards.decode_reply(await _read_reply(stream))
    except BaseException as failure:
        await trio.aclose_forcefully(stream)
        if isinstance(failure, trio.TooSlowError):
            raise GuestError(f"The guest did not say whether it could {what}.") from failure
        if isinstance(failure, trio.BrokenResourceError):
            raise GuestGone(f"The guest hung up when asked to {what}.") from failure
        raise
    if errno == 0:
        return stream, port
    await trio.aclose_forcefully(stream)
    kind = GuestRefused if errno in forwards.REFUSED else GuestError
    raise kind(f"The guest can't {what}: {forwards.error_text(errno)}.")


async def _read_reply(stream: HalfCloseableStream) -> bytes:
    raw = b""
    while len(raw) < forwards.REPLY.size:
        data = await stream.receive_some(forwards.REPLY.size - len(raw))
        if not data:
            raise trio.BrokenResourceError
        raw += data
    return raw
