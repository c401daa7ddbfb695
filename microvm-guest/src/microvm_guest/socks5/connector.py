"""Where a guest's request leads on the host: resolved once, judged, and connected to just that."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from microvm_guest.socks5.wire import Reply

if TYPE_CHECKING:
    from microvm.outbound import IpAddress, OutboundPolicy
    from microvm_guest.socks5.wire import Destination

MAX_ADDRESSES: Final = 16
"""Of one name; the others are not tried."""
NEXT_ATTEMPT_S: Final = 0.25
"""RFC 8305, 5: how long one address has before the next is tried beside it."""
MAX_LOOKUPS: Final = 8
"""Names that are resolved at once for one guest: each is a thread for as long as it takes, also
when nobody waits for it any more."""

_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)

_REPLIES: Final = {
    errno.ECONNREFUSED: Reply.CONNECTION_REFUSED,
    errno.ECONNRESET: Reply.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.ENETDOWN: Reply.NETWORK_UNREACHABLE,
    errno.EAFNOSUPPORT: Reply.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Reply.NETWORK_UNREACHABLE,  # of IPv6 that is switched off
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Reply.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reply.HOST_UNREACHABLE,
    errno.EACCES: Reply.NOT_ALLOWED,
    errno.EPERM: Reply.NOT_ALLOWED,
}


class OutboundRefused(Exception):
    """A request that is not carried out.

    Args:
        reply: What the guest is told.
        why: What the log is told.
    """

    def __init__(self, reply: Reply, why: str) -> None:
        super().__init__(why)
        self.reply = reply
        self.why = why


@attrs.frozen
class Place:
    """An address that may be connected to."""

    family: socket.AddressFamily
    address: tuple[str | int, ...]
    """As the socket calls take it: numeric, so that nothing is resolved again."""
    why: str = ""
    """Why it may."""

    @property
    def numeric(self) -> IpAddress:
        """The address alone, without its scope."""
        return ipaddress.ip_address(str(self.address[0]).partition("%")[0])

    def __str__(self) -> str:
        host, port = self.address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def reply_for(error: OSError) -> Reply:
    """What the guest is told of an error of the host's."""
    return _REPLIES.get(error.errno or 0, Reply.GENERAL_FAILURE)


async def look_up(
    host: str,
    port: int,
    kind: socket.SocketKind,
    lookups: trio.CapacityLimiter,
    family: int = socket.AF_UNSPEC,
) -> list[Place]:
    """The first `MAX_ADDRESSES` of a host, in the resolver's order; none is judged yet.

    An address is not asked for, and waits for no lookup of a name.

    Args:
        host: A name or an address.
        port: To go with each address.
        kind: TCP's or UDP's kind of socket.
        lookups: Of whoever has the guest ask, of `MAX_LOOKUPS`: a lookup that is cancelled goes on
            in its thread, and the thread counts until it ends.
        family: IPv4's or IPv6's, if it is to be one of them.

    Raises:
        OSError: it is not known, or can't be asked for.
    """
    ask = partial(socket.getaddrinfo, host, port, family=family, type=kind)
    try:
        if is_numeric(host):
            await trio.lowlevel.checkpoint()
            found = ask(flags=socket.AI_NUMERICHOST)
        else:
            found = await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=lookups)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"no host is called so: {error}") from error
    return [
        Place(socket.AddressFamily(entry[0]), (str(entry[4][0]), port, *entry[4][2:]))
        for entry in found[:MAX_ADDRESSES]
    ]


async def find_places(
    policy: OutboundPolicy,
    destination: Destination,
    kind: socket.SocketKind,
    lookups: trio.CapacityLimiter,
) -> list[Place]:
    """Resolve a destination, once, and keep the addresses that the policy allows.

    Args:
        policy: What may be reached.
        destination: What is asked for.
        kind: TCP's or UDP's kind of socket.
        lookups: The guest's own, of `MAX_LOOKUPS`.

    Raises:
        OutboundRefused: there are none.
    """
    host, port = destination.host, destination.port
    if not _can_be_a_host(host):
        raise OutboundRefused(Reply.HOST_UNREACHABLE, "no host is called so")
    if (verdict := policy.denies_name(host, port)) is not None:
        raise OutboundRefused(Reply.NOT_ALLOWED, verdict.why)
    try:
        found = await look_up(host, port, kind, lookups)
    except OSError as error:
        raise OutboundRefused(Reply.HOST_UNREACHABLE, f"not resolved: {error}") from error
    places, why = [], "no address"
    for place in found:
        try:
            own = is_own(place)
        except OSError as error:
            raise OutboundRefused(reply_for(error), f"not judged: {error}") from error
        verdict = policy.judge(host, place.numeric, port, own=own)
        why = f"{place.numeric} {verdict.why}"
        if verdict.allowed:
            places.append(attrs.evolve(place, why=verdict.why))
    if not places:
        raise OutboundRefused(Reply.NOT_ALLOWED, why)
    return places


def _can_be_a_host(host: str) -> bool:
    r"""Whether it is a name in plain letters, or a numeric address.

    A resolver may read more into others than rules do: ``\097`` is an ``a`` (RFC 4343, 2.1).
    """
    return _NAME.fullmatch(host) is not None or is_numeric(host)


def is_numeric(host: str) -> bool:
    """Whether it is an address in the usual notation."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_own(place: Place) -> bool:
    """Whether an address is one of this host's: who sends there, sends from there.

    Connecting a UDP socket sends nothing.

    Raises:
        OSError: this host has no more sockets, and it is not known.
    """
    try:
        probe = socket.socket(place.family, socket.SOCK_DGRAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False  # no address of that family is this host's
        raise
    with probe:
        try:
            probe.connect(place.address)
        except OSError:
            return False  # and connecting will say why
        return bool(probe.getsockname()[0] == place.address[0])


async def connect_first(places: Sequence[Place]) -> tuple[trio.SocketStream, Place]:
    """A connection to the first of these addresses that answers.

    Raises:
        OutboundRefused: none does; with the reply for the last that could be reached.
    """
    winner: tuple[trio.SocketStream, Place] | None = None
    errors: list[OSError] = []

    async def attempt(place: Place, failed: trio.Event, scope: trio.CancelScope) -> None:
        nonlocal winner
        try:
            stream = await _connect(place)
        except OSError as error:
            errors.append(error)
            failed.set()
            return
        if winner is None:
            winner = stream, place
        else:
            stream.socket.close()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for place in places:
            failed = trio.Event()
            nursery.start_soon(attempt, place, failed, nursery.cancel_scope)
            with trio.move_on_after(NEXT_ATTEMPT_S):
                await failed.wait()
    if winner is not None:
        return winner
    # That one family has no way out says less than what the other met.
    told = sorted(errors, key=lambda error: reply_for(error) is Reply.NETWORK_UNREACHABLE)
    raise OutboundRefused(reply_for(told[0]), f"not connected: {told[0].strerror or told[0]}")


async def _connect(place: Place) -> trio.SocketStream:
    sock = trio.socket.socket(place.family, socket.SOCK_STREAM)
    try:
        await sock.connect(place.address)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
