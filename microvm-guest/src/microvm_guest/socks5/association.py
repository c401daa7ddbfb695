"""One UDP association (RFC 1928, 7): a guest's datagrams to the host's network and back.

Datagrams come and go over a stream to the agent, each behind its length and in its SOCKS5 header.
Each destination is judged when it is first sent to; answers are taken from those that were sent
to, and from nobody else. Whatever can't be sent is dropped, as datagrams are.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from microvm_guest.protocol.forwards import DATAGRAM
from microvm_guest.socks5.connector import OutboundRefused, Place, find_places
from microvm_guest.socks5.wire import Destination, decode_datagram, encode_datagram

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

    from microvm.outbound import OutboundPolicy

log = logging.getLogger("microvm.outbound")

MAX_DESTINATIONS: Final = 256
"""Of one association; one more, and the first is forgotten."""
MAX_DATAGRAM: Final = 65535
_CHUNK: Final = 128 * 1024


class Association:
    """The datagrams of one program in the guest.

    Args:
        policy: What it may reach.
        datagrams: To the agent, from `datagrams_at`.
        lookups: How many names may be resolved at once.
    """

    def __init__(
        self,
        policy: OutboundPolicy,
        datagrams: HalfCloseableStream,
        lookups: trio.CapacityLimiter,
    ) -> None:
        self._lookups = lookups
        self._policy = policy
        self._datagrams = datagrams
        self._places: dict[Destination, Place | None] = {}
        self._peers: dict[tuple[str | int, ...], None] = {}
        self._sockets: dict[socket.AddressFamily, trio.socket.SocketType] = {}

    async def run(self, control: HalfCloseableStream) -> None:
        """Carry datagrams for as long as the connection lasts that asked for them."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_all, nursery)
                while await control.receive_some(4096):
                    pass  # nothing more is to be said there
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            for sock in self._sockets.values():
                sock.close()

    async def _send_all(self, nursery: trio.Nursery) -> None:
        waiting = bytearray()
        while data := await self._datagrams.receive_some(_CHUNK):
            waiting += data
            while len(waiting) >= DATAGRAM.size:
                (length,) = DATAGRAM.unpack_from(waiting)
                end = DATAGRAM.size + length
                if len(waiting) < end:
                    break
                raw = bytes(waiting[DATAGRAM.size : end])
                del waiting[:end]
                await self._send(raw, nursery)
        nursery.cancel_scope.cancel()

    async def _send(self, raw: bytes, nursery: trio.Nursery) -> None:
        decoded = decode_datagram(raw)
        if decoded is None:
            return
        destination, data = decoded
        place = await self._place(destination)
        if place is None:
            return
        try:
            sock = self._sockets.get(place.family)
            if sock is None:
                sock = trio.socket.socket(place.family, socket.SOCK_DGRAM)
                self._sockets[place.family] = sock
                await sock.sendto(data, place.address)  # this binds it, so that it can be read
                nursery.start_soon(self._receive_all, sock)
            else:
                await sock.sendto(data, place.address)
        except OSError as error:
            log.debug("a datagram to %s was dropped: %s", place, error)

    async def _place(self, destination: Destination) -> Place | None:
        """Where a destination is, judged once; None for one that may not be reached."""
        if destination in self._places:
            return self._places[destination]
        try:
            with trio.fail_after(self._policy.connect_within_s):
                found = await find_places(
                    self._policy, destination, socket.SOCK_DGRAM, self._lookups
                )
        except (OutboundRefused, trio.TooSlowError) as error:
            place = None
            log.info("datagrams to %s refused: %s", destination, error)
        else:
            place = found[0]
            log.info("datagrams to %s at %s, %s", destination, place, place.why)
            _remember(self._peers, _peer(place.address), None)
        _remember(self._places, destination, place)
        return place

    async def _receive_all(self, sock: trio.socket.SocketType) -> None:
        while True:
            try:
                data, address = await sock.recvfrom(MAX_DATAGRAM)
            except OSError as error:
                # What ICMP says of an earlier datagram; nobody is there to be told.
                log.debug("%s", error)
                continue
            if _peer(address) not in self._peers:
                continue
            host = str(address[0]).partition("%")[0]
            raw = encode_datagram(Destination(host, address[1]), data)
            if len(raw) <= MAX_DATAGRAM:
                await self._datagrams.send_all(DATAGRAM.pack(len(raw)) + raw)


def _peer(address: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return address[:2]


def _remember(kept: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    if key not in kept and len(kept) >= MAX_DESTINATIONS:
        del kept[next(iter(kept))]
    kept[key] = value
