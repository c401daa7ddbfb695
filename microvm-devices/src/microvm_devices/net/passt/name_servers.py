"""Which name servers a guest is given, where its options name none.

passt hands on what the host's /etc/resolv.conf has, but for loopback addresses, which in the guest
would be the guest itself. Many hosts have no other there: systemd-resolved's stub (127.0.0.53) or a
dnsmasq of NetworkManager's. Both write down whom they ask themselves, and those do for the guest.

passt could also carry questions to the host's stub (``--dns-forward``). That of Debian 12 does not
tell the guest the address that it does this for, and has no TCP for it. With ``host_access`` it
does the former: the guest is given the gateway's address, and questions to it go to the stub.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from microvm_devices.net.passt.options import PasstOptions

RESOLV_CONF: Final = Path("/etc/resolv.conf")
UPSTREAMS: Final = (
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
"""What the host's own name servers ask: systemd-resolved(8), NetworkManager.conf(5) on ``dns``."""
MAX_SERVERS: Final = 3
"""Of one IP version: as many as a C library asks (resolv.conf(5), MAXNS), and passt tells of."""


@attrs.frozen(kw_only=True)
class HostNameServers:
    """What a host says of its name servers."""

    own: tuple[str, ...] = ()
    """What its own programs use."""
    upstream: tuple[str, ...] = ()
    """What those ask, as far as a guest reaches them; only looked for where it reaches none of
    `own`."""


def host_name_servers(read: Callable[[Path], str]) -> HostNameServers:
    """What this host's files say.

    Args:
        read: Gives a file's text; raises `OSError` if there is none.
    """

    def servers(path: Path) -> tuple[str, ...]:
        try:
            return servers_in(read(path))
        except OSError:
            return ()

    own = servers(RESOLV_CONF)
    if reachable(own):
        return HostNameServers(own=own)
    found = (reachable(servers(path)) for path in UPSTREAMS)
    return HostNameServers(own=own, upstream=next(filter(None, found), ()))


def servers_in(text: str) -> tuple[str, ...]:
    """The IP addresses behind ``nameserver`` (resolv.conf(5)); what is none is passed by."""
    found = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if line.startswith("nameserver") and _is_ip(address):
                found.append(address)
    return tuple(found)


def reachable(servers: tuple[str, ...]) -> tuple[str, ...]:
    """Those that mean the same server to a guest, and no more than passt takes."""
    taken: dict[int, list[str]] = {4: [], 6: []}
    for address in map(ipaddress.ip_address, servers):
        local = address.is_loopback or address.is_link_local or address.is_unspecified
        if not local and len(taken[address.version]) < MAX_SERVERS:
            taken[address.version].append(str(address))
    return (*taken[4], *taken[6])


def words(options: PasstOptions, host: HostNameServers) -> list[str]:
    """What passt is told of name servers; nothing where it does right by itself."""
    if options.dns:
        return [word for server in options.dns for word in ("--dns", server)]
    if not options.host_access:
        return [word for server in host.upstream for word in ("--dns", server)]
    if host.own and reachable(host.own[:1]):
        # Often the gateway is the name server too; and by its address the guest reaches the host.
        return ["--dns-forward", host.own[0]]
    return []


def what_is_missing(options: PasstOptions, host: HostNameServers) -> str | None:
    """What to say of a guest that gets no name server; None for one that does."""
    if options.dns or reachable(host.own):
        return None
    if host.own if options.host_access else host.upstream:
        return None
    remedy = 'Give it one: --net passt:dns=ADDRESS, or NetConfig.options["dns"]'
    if not host.own:
        return f"The guest has no name server, as this host has none. {remedy}."
    return (
        f"The guest has no name server: this host's own ({', '.join(host.own)}) can be reached "
        f"from this host alone. {remedy}; or let the guest use this host's own programs, the name "
        'server among them: --net passt:host, or NetConfig.options["host_access"].'
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
