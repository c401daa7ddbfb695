"""`OutboundProxy`: the host as the SOCKS5 proxy of a guest that has no network of its own.

The guest is hostile. What it may reach is `OutboundPolicy`'s to say; how much of the host it may
take is bounded here: connections, those that do not say what they want, names being resolved,
associations. Each request leaves one line in the log ``microvm.outbound``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from microvm.errors import MicrovmError
from microvm.forwards.addresses import LOOPBACK, TcpAddress
from microvm.forwards.carry import carry
from microvm_guest.forwarding import datagrams_at
from microvm_guest.socks5.association import Association
from microvm_guest.socks5.connector import (
    MAX_LOOKUPS,
    OutboundRefused,
    connect_first,
    find_places,
)
from microvm_guest.socks5.negotiate import hear
from microvm_guest.socks5.server_half import ServerHalf
from microvm_guest.socks5.wire import Command, Destination, Reply

if TYPE_CHECKING:
    import socket as stdlib_socket

    from trio.abc import HalfCloseableStream

    from microvm.abc import GuestChannels
    from microvm.outbound import OutboundPolicy

log = logging.getLogger("microvm.outbound")


class OutboundProxy:
    """What serves one guest; `serve` is called for each connection of its.

    Args:
        policy: What the guest may reach, and how much of it.
        channels: To the guest, for its datagrams.
    """

    def __init__(self, policy: OutboundPolicy, channels: GuestChannels) -> None:
        self._policy = policy
        self._channels = channels
        self._commands = frozenset(
            {Command.CONNECT, Command.UDP_ASSOCIATE} if policy.udp else {Command.CONNECT}
        )
        self._lookups = trio.CapacityLimiter(MAX_LOOKUPS)
        self._handshakes: dict[trio.CancelScope, None] = {}
        self._connections = 0
        self._associations = 0

    async def serve(self, stream: HalfCloseableStream) -> None:
        """Serve one connection of the guest's to its end. Raises nothing but cancellation."""
        half = ServerHalf(self._commands)
        try:
            asked = None
            with self._handshake():
                asked = await hear(stream, half)
            if asked is None:
                return
            try:
                if asked.command is Command.CONNECT:
                    await self._connect(stream, half, asked.destination)
                else:
                    await self._associate(stream, half)
            except OutboundRefused as refusal:
                what = asked.command.name.lower()
                log.info("%s %s refused: %s", what, asked.destination, refusal.why)
                await stream.send_all(half.reply(refusal.reply))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    @contextmanager
    def _handshake(self) -> Iterator[None]:
        """Bounded in time, and in number: the one that has been silent for longest gives way."""
        with trio.move_on_after(self._policy.handshake_within_s) as scope:
            self._handshakes[scope] = None
            if len(self._handshakes) > self._policy.max_handshakes:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]  # now: many may come before it has noticed
                oldest.cancel()
            try:
                yield
            finally:
                self._handshakes.pop(scope, None)

    async def _connect(
        self, stream: HalfCloseableStream, half: ServerHalf, destination: Destination
    ) -> None:
        if self._connections >= self._policy.max_connections:
            raise OutboundRefused(Reply.GENERAL_FAILURE, "too many connections")
        self._connections += 1
        try:
            out = await self._open(destination)
            async with out:
                await stream.send_all(half.reply(Reply.SUCCEEDED, _bound(out.socket)))
                await carry(stream, out)
        finally:
            self._connections -= 1

    async def _open(self, destination: Destination) -> trio.SocketStream:
        from socket import SOCK_STREAM

        try:
            with trio.fail_after(self._policy.connect_within_s):
                places = await find_places(self._policy, destination, SOCK_STREAM, self._lookups)
                out, place = await connect_first(places)
        except trio.TooSlowError as error:
            raise OutboundRefused(Reply.HOST_UNREACHABLE, "no answer in time") from error
        except OSError as error:  # out of descriptors, for one
            raise OutboundRefused(Reply.GENERAL_FAILURE, str(error)) from error
        log.info("connect %s at %s, %s", destination, place, place.why)
        return out

    async def _associate(self, stream: HalfCloseableStream, half: ServerHalf) -> None:
        if self._associations >= self._policy.max_udp:
            raise OutboundRefused(Reply.GENERAL_FAILURE, "too many UDP associations")
        self._associations += 1
        try:
            try:
                datagrams, port = await datagrams_at(self._channels, TcpAddress(port=0))
            except MicrovmError as error:
                raise OutboundRefused(Reply.GENERAL_FAILURE, error.message) from error
            async with datagrams:
                await stream.send_all(half.reply(Reply.SUCCEEDED, Destination(LOOPBACK, port)))
                await Association(self._policy, datagrams, self._lookups).run(stream)
        finally:
            self._associations -= 1


def _bound(sock: trio.socket.SocketType | stdlib_socket.socket) -> Destination:
    host, port = sock.getsockname()[:2]
    return Destination(host.partition("%")[0], port)
