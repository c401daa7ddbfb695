"""What passt is asked for, and its command line. Pure but for looking whether it is installed."""

from __future__ import annotations

import ipaddress
import re
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from microvm.config import MAX_MTU
from microvm.errors import ConfigError
from microvm_devices.net.options import check_names, wrong
from microvm_devices.net.passt import name_servers

if TYPE_CHECKING:
    from microvm_devices.net.passt.name_servers import HostNameServers

MTU: Final = 65520
"""passt's own default, and the guest's: the longest that IPv4 has in whole words. Frames of TCP
are then as long as with segments to cut, and there are few of them."""
MIN_MTU: Final = 1280
"""IPv6 has no shorter links (RFC 8200, 5)."""

_FORWARD: Final = re.compile(r"(?:(?P<address>[0-9a-fA-F.:]+)/)?(?P<host>\d+)(?::(?P<guest>\d+))?")
_LOCAL: Final = "127.0.0.1"
MAX_PORT: Final = 65535


@attrs.frozen(kw_only=True)
class PasstOptions:
    """What `NetConfig.options` may have."""

    tcp_ports: tuple[str, ...] = ()
    """Ports of the host that lead to the guest: ``8080``, ``8080:80``, ``0.0.0.0/8080:80``. Where
    no address is given, programs of the host alone can use them."""
    udp_ports: tuple[str, ...] = ()
    """The same for UDP."""
    dns: tuple[str, ...] = ()
    """Name servers for the guest, in place of the host's; at most three of an IP version."""
    host_access: bool = False
    """Whether the guest reaches the host's own programs, also those that listen on 127.0.0.1
    alone, by the address of its gateway."""
    mtu: int = MTU


def read_options(options: Mapping[str, Any]) -> PasstOptions:
    """Check them.

    Raises:
        ConfigError: they can't be used.
    """
    check_names("passt", options, [field.name for field in attrs.fields(PasstOptions)])
    given = dict(options)
    for name in ("tcp_ports", "udp_ports"):
        given[name] = tuple(_forward(name, spec) for spec in _list(name, given.get(name, ())))
    given["dns"] = tuple(_address("dns", one) for one in _list("dns", given.get("dns", ())))
    for version, mark in ((4, "."), (6, ":")):
        if sum(mark in server for server in given["dns"]) > name_servers.MAX_SERVERS:
            problem = f"has more than {name_servers.MAX_SERVERS} of IPv{version}."
            raise wrong("passt", "dns", problem)
    if not isinstance(given.get("host_access", False), bool):
        raise wrong("passt", "host_access", "must be True or False.")
    mtu = given.get("mtu", MTU)
    if type(mtu) is not int or not MIN_MTU <= mtu <= MAX_MTU:
        raise wrong("passt", "mtu", f"must be from {MIN_MTU} to {MAX_MTU}, not {mtu!r}.")
    return PasstOptions(**given)


def _list(name: str, value: object) -> tuple[object, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise wrong("passt", name, f"must be a list, not {value!r}.")


def _forward(name: str, spec: object) -> str:
    """A port to forward, in passt's words."""
    problem = f"has {spec!r}; a port is like 8080, 8080:80 or 0.0.0.0/8080:80."
    match = None
    if isinstance(spec, (int, str)) and not isinstance(spec, bool):
        match = _FORWARD.fullmatch(str(spec))
    if match is None:
        raise wrong("passt", name, problem)
    ports = [int(port) for port in (match["host"], match["guest"] or match["host"])]
    if not all(0 < port <= MAX_PORT for port in ports):
        raise wrong("passt", name, problem)
    address = _LOCAL if match["address"] is None else _address(name, match["address"])
    return f"{address}/{ports[0]}:{ports[1]}"


def _address(name: str, value: object) -> str:
    try:
        if not isinstance(value, str):
            raise ValueError(value)
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise wrong("passt", name, f"has {value!r}, which is no IP address.") from None


def find_passt() -> str:
    """The program's path.

    Raises:
        ConfigError: it is not installed.
    """
    path = shutil.which("passt")
    if path is None:
        raise ConfigError(
            "The net backend passt needs the program passt, which is not installed.",
            remedy="On Debian and Ubuntu: apt-get install passt",
        )
    return path


def command(program: str, options: PasstOptions, host: HostNameServers, *, fd: int) -> list[str]:
    """The command line of a passt that serves the socket `fd`, and ends when that is closed."""
    words = [program, "--foreground", "--quiet", "--fd", str(fd), "--mtu", str(options.mtu)]
    if not options.host_access:
        words.append("--no-map-gw")
    for option, ports in (("--tcp-ports", options.tcp_ports), ("--udp-ports", options.udp_ports)):
        for spec in ports or ("none",):
            words += [option, spec]
    return words + name_servers.words(options, host)
