"""Where a VPN's server is, and the one hole through which a guest without a network gets there.

Names are resolved on the host at each attempt: the guest's own resolver is the tunnel's, and a
server may have moved meanwhile. Where the guest goes out by the host, the proxy in it is opened for
that one address and port, and for nothing else.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import GuestError
from microvm.outbound import OutboundPolicy

if TYPE_CHECKING:
    from microvm import Machine
    from microvm.forwards.forward import Forward


log = logging.getLogger("microvm.vpn")

FREE_WITHIN_S: Final = 2.0
"""For the agent to let go of a port that was listened at."""


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
        self._tries: dict[tuple[str, int], int] = {}

    async def find(self, host: str, port: int, proto: str) -> str | None:
        """A numeric address to connect to now; at each call the next that the name has.

        Raises:
            GuestError: the guest can't have the proxy.
        """
        addresses = await _resolve(host, port, proto, only_ipv4=self._proxy_port is None)
        if not addresses:
            return None
        turn = self._tries.get((host, port), 0)
        self._tries[host, port] = turn + 1
        address = addresses[turn % len(addresses)]
        if self._proxy_port is not None:
            await self._lead_to(address, port)
        return address

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


async def _resolve(host: str, port: int, proto: str, *, only_ipv4: bool) -> list[str]:
    """Addresses of a name, in the resolver's order, each once."""
    family = 0
    name = proto.partition("-")[0]
    if name.endswith("4"):
        family = socket.AF_INET
    elif name.endswith("6"):
        family = socket.AF_INET6
    try:
        found = await trio.socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    if only_ipv4:  # what DHCP gives a guest
        ipv4 = [one for one in addresses if ipaddress.ip_address(one).version == 4]
        return ipv4 or addresses
    return addresses
