"""Where a VPN's server is, and the one hole through which a guest without a network gets there.

Names are resolved on the host at each attempt: the guest's own resolver is the tunnel's, and a
server may have moved meanwhile. Where the guest goes out by the host, the proxy in it is opened for
that one address and port, and for nothing else. It would be opened for the host's own too, so no
name may lead there: whoever answers for a name may say anything.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Final

import attrs
import trio

from microvm.errors import GuestError
from microvm.outbound import OutboundPolicy, never_by_name
from microvm_guest.openvpn.states import VpnReason
from microvm_guest.socks5.connector import MAX_LOOKUPS, Place, is_own, look_up

if TYPE_CHECKING:
    from microvm import Machine
    from microvm.forwards.forward import Forward


log = logging.getLogger("microvm.vpn")

MAX_ADDRESSES: Final = 8
"""Of one name; more are not looked at."""
FREE_WITHIN_S: Final = 2.0
"""For the agent to let go of a port that was listened at."""


@attrs.frozen
class Found:
    """There is one."""

    address: str
    """Numeric."""
    untried: int
    """How many others the name has whose turn has not come yet."""


@attrs.frozen
class NoWay:
    """There is none to a server now."""

    reason: VpnReason
    said: str = ""
    """More of it, for a person."""


class Places:
    """The ways to the servers of one configuration.

    Args:
        machine: Whose guest connects.
        proxy_port: Where the guest finds the host's proxy; None where it has a network of its own.
    """

    def __init__(self, machine: Machine, proxy_port: int | None) -> None:
        self._machine = machine
        self._proxy_port = proxy_port
        self._open: Forward | None = None
        self._open_for: tuple[str, int] | None = None
        self._tried: dict[tuple[str, int, str], list[str]] = {}
        """Which addresses, and not how many: resolvers tell them in another order each time."""
        self._lookups = trio.CapacityLimiter(MAX_LOOKUPS)
        """Our own, so that names which nobody answers for hold up nothing else of the program's."""

    async def find(self, host: str, port: int, proto: str) -> Found | NoWay:
        """An address to connect to now; at each call another, until the name has no more of them.

        Raises:
            GuestError: the guest can't have the proxy.
        """
        try:
            found = await look_up(host, port, socket.SOCK_STREAM, self._lookups, _family(proto))
        except OSError as error:
            log.debug("%s is not resolved: %s", host, error)
            return NoWay(VpnReason.NAME_NOT_FOUND)
        refused: NoWay | None = None
        if self._proxy_port is None:
            found = _of_dhcp(found)
        elif not _is_numeric(host):
            found, refused = _without_our_own(host, found)
        addresses = list(dict.fromkeys(str(place.numeric) for place in found))[:MAX_ADDRESSES]
        if not addresses:
            return refused or NoWay(VpnReason.NAME_NOT_FOUND)
        tried = [one for one in self._tried.get((host, port, proto), ()) if one in addresses]
        if len(tried) == len(addresses):
            tried = []
        address, *untried = (one for one in addresses if one not in tried)
        self._tried[host, port, proto] = [*tried, address]
        if self._proxy_port is not None:
            await self._lead_to(address, port)
        return Found(address, len(untried))

    async def _lead_to(self, address: str, port: int) -> None:
        if self._open_for == (address, port):
            return
        if self._open is not None:
            last, self._open, self._open_for = self._open, None, None
            await last.aclose()
        place = f"[{address}]" if ":" in address else address
        policy = OutboundPolicy(allow=(f"{place}:{port}",), others="deny")
        self._open = await self._open_proxy(policy)
        self._open_for = (address, port)

    async def _open_proxy(self, policy: OutboundPolicy) -> Forward:
        assert self._proxy_port is not None
        with trio.move_on_after(FREE_WITHIN_S):
            while True:
                try:
                    return await self._machine.outbound_proxy(policy, guest_port=self._proxy_port)
                except GuestError as error:
                    log.debug("the last way is still there: %s", error)
                await trio.sleep(0.05)
        return await self._machine.outbound_proxy(policy, guest_port=self._proxy_port)

    async def aclose(self) -> None:
        """Close the hole."""
        if self._open is not None:
            last, self._open = self._open, None
            await last.aclose()


def _family(proto: str) -> int:
    """What OpenVPN's word for a protocol says of it: ``udp``, ``tcp4-client``, ``udp6``."""
    name = proto.partition("-")[0]
    families = {"4": socket.AF_INET, "6": socket.AF_INET6}
    return families.get(name[-1:], socket.AF_UNSPEC)


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _of_dhcp(places: list[Place]) -> list[Place]:
    """Those of IPv4, which is what DHCP gives a guest, if there are any."""
    return [place for place in places if place.family is socket.AF_INET] or places


def _without_our_own(host: str, places: list[Place]) -> tuple[list[Place], NoWay | None]:
    """Those to which a name may lead, and what to say if they are none."""
    good, refused = [], None
    for place in places:
        why = never_by_name(place.numeric) or ("this host itself" if is_own(place) else None)
        if why is None:
            good.append(place)
        else:
            said = f"{host} is at {place.numeric}: {why}."
            refused = NoWay(VpnReason.NAME_REFUSED, said)
    return good, refused
