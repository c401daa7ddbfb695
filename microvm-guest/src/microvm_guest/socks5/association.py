"""One UDP association (RFC 1928, 7): a guest's datagrams to the host's network and back.

Datagrams come and go over a stream to the agent, each behind its length and in its SOCKS5 header.
Each destination is judged when it is first sent to; answers are taken from those that were sent
to, and from nobody else. A name is looked up beside the others' datagrams, and its own wait for
that. Whatever can't be sent is dropped, as datagrams are. Answers that have come together go to the
guest in one write: a tunnel's come by the hundred, and each write is a turn of everything below.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from microvm_guest.protocol.forwards import DATAGRAM
from microvm_guest.socks5.connector import OutboundRefused, Place, find_places, is_numeric
from microvm_guest.socks5.wire import Destination, Reply, decode_datagram, encode_datagram

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

    from microvm.outbound import OutboundPolicy

log = logging.getLogger("microvm.outbound")

MAX_DESTINATIONS: Final = 256
"""Of one association; one more, and the first is forgotten."""
MAX_PENDING: Final = 8
"""Names of one association that are looked up at once; what is for one more is dropped."""
MAX_HELD: Final = 32
"""Datagrams of one association that wait for a lookup."""
MAX_DATAGRAM: Final = 65535
_CHUNK: Final = 128 * 1024
"""Read at once from the agent, and written to it."""


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
        """None for one that may not be reached. One that was not found is not here."""
        self._held: dict[Destination, list[bytes]] = {}
        self._told: dict[Destination, None] = {}
        """Whose refusal is in the log."""
        self._peers: dict[tuple[str | int, ...], bytes] = {}
        """Who may answer, and what stands before each answer."""
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._answering = trio.Lock()

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
        if destination in self._held:
            if sum(map(len, self._held.values())) < MAX_HELD:
                self._held[destination].append(data)
        elif destination in self._places or is_numeric(destination.host):
            await self._send_to(await self._place(destination), data, nursery)
        elif len(self._held) < MAX_PENDING:
            self._held[destination] = [data]
            nursery.start_soon(self._send_held, destination, nursery)

    async def _send_held(self, destination: Destination, nursery: trio.Nursery) -> None:
        """Look a name up, and send what has come for it meanwhile."""
        place = await self._place(destination)
        held = self._held[destination]
        while held:
            await self._send_to(place, held.pop(0), nursery)
        del self._held[destination]

    async def _send_to(self, place: Place | None, data: bytes, nursery: trio.Nursery) -> None:
        if place is None:
            return
        try:
            sock = self._socket(place.family, nursery)
            while True:
                try:
                    sock.sendto(data, place.address)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(sock)
                else:
                    return
        except OSError as error:
            log.debug("a datagram to %s was dropped: %s", place, error)

    def _socket(self, family: socket.AddressFamily, nursery: trio.Nursery) -> socket.socket:
        """The one for this family, read from its first moment on.

        Raises:
            OSError: this host has none.
        """
        if family not in self._sockets:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                sock.bind(("", 0))  # one that has no port yet can't be read
            except BaseException:
                sock.close()
                raise
            self._sockets[family] = sock
            nursery.start_soon(self._receive_all, self._sockets[family])
        return self._sockets[family]

    async def _place(self, destination: Destination) -> Place | None:
        """Where a destination is, judged once; None for one that can't or may not be reached."""
        if destination in self._places:
            return self._places[destination]
        try:
            with trio.fail_after(self._policy.connect_within_s):
                found = await find_places(
                    self._policy, destination, socket.SOCK_DGRAM, self._lookups
                )
        except (OutboundRefused, trio.TooSlowError) as error:
            if destination not in self._told:
                log.info("datagrams to %s refused: %s", destination, error)
            _remember(self._told, destination, None)
            if isinstance(error, OutboundRefused) and error.reply is Reply.NOT_ALLOWED:
                _remember(self._places, destination, None)
            return None
        place = found[0]
        log.info("datagrams to %s at %s, %s", destination, place, place.why)
        peer = _peer(place.address)
        host = str(peer[0]).partition("%")[0]
        _remember(self._peers, peer, encode_datagram(Destination(host, int(peer[1])), b""))
        _remember(self._places, destination, place)
        return place

    async def _receive_all(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            if frames := self._answers(sock):
                async with self._answering:  # of the other family there may be one too
                    await self._datagrams.send_all(frames)

    def _answers(self, sock: socket.socket) -> bytearray:
        """What has come, as the guest is to have it; of what is wrong or nobody's, nothing."""
        frames = bytearray()
        while len(frames) < _CHUNK:
            try:
                data, address = sock.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                # What ICMP says of an earlier datagram; nobody is there to be told.
                log.debug("%s", error)
                break
            head = self._peers.get(_peer(address))
            if head is not None and len(head) + len(data) <= MAX_DATAGRAM:
                frames += DATAGRAM.pack(len(head) + len(data)) + head + data
        return frames


def _peer(address: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return address[:2]


def _remember(kept: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    if key not in kept and len(kept) >= MAX_DESTINATIONS:
        del kept[next(iter(kept))]
    kept[key] = value
