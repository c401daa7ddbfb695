"""What a guest may reach through its host's outbound proxy. Pure.

A guest's destinations are judged by the address that will be connected to, never by how it was
written: names, ``127.1``, ``0x7f000001`` and ``::ffff:127.0.0.1`` have been resolved by then.

Order of judgement, the first that speaks decides:

1. a `deny` rule that names the host or the address: no;
2. an address that is not public, or is this host's own: no, but if an `allow` rule names it (a
   private network or a part of it; of this host, the very address). So no name, allowed or not,
   leads there, and no ``0.0.0.0/0``;
3. an `allow` rule that names the host or the address: yes;
4. everybody else: yes, or no with ``others="deny"``.

Private networks (RFC 1918, RFC 4193, RFC 6598) are not public: routers, printers and databases on
them trust whoever is there. ``allow=("192.168.1.0/24",)`` opens one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import attrs

from microvm.errors import ConfigError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_PUBLIC: Final = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        # First what lies within others of these.
        ("100.100.100.200/32", "a cloud's metadata"),
        ("192.0.0.192/32", "a cloud's metadata"),
        ("169.254.169.254/32", "a cloud's metadata"),
        ("fd00:ec2::254/128", "a cloud's metadata"),
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "a private network"),
        ("100.64.0.0/10", "a provider's network"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's metadata"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "a private network"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "a relay"),
        ("192.168.0.0/16", "a private network"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),  # and broadcast
        ("::1/128", "loopback"),
        ("::/96", "reserved"),  # unspecified, and IPv4-compatible addresses
        ("64:ff9b:1::/48", "a private network"),
        ("100::/64", "discarded"),
        ("2001:db8::/32", "documentation"),
        ("fc00::/7", "a private network"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "a private network"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved"),  # and Teredo, which leads to IPv4 addresses
        ("3fff::/20", "documentation"),
        # Only 2000::/3 is global unicast (RFC 4291, 2.4); overlay networks use what is left.
        ("::/3", "reserved"),
        ("4000::/2", "reserved"),
        ("8000::/1", "reserved"),
    )
)
"""IANA's special-purpose address registries (RFC 6890), and clouds' metadata services."""

_OF_OTHERS: Final = frozenset(
    {"a private network", "a provider's network", "documentation", "benchmarks"}
)
"""Of those, the ones in which hosts of other people's may be."""

_IPV4_WITHIN: Final = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
"""IPv6 networks that lead to an IPv4 address, and how far it stands from the end (RFC 4291,
2.5.5.2; RFC 6052, 2.1; RFC 3056, 2)."""


def ipv4_within(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in _IPV4_WITHIN:
            if address in network:
                return ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
    return address


def not_public(address: IpAddress) -> str | None:
    """Why an address is nobody's on the Internet, in a word or two; None if it is somebody's."""
    found = _special(address)
    return None if found is None else found[1]


def never_by_name(address: IpAddress) -> str | None:
    """Why no name may lead a guest to an address, even where private networks are open to it.

    Whoever has a name's zone says where it leads, and may say ``127.0.0.1`` at any time.
    """
    what = not_public(address)
    return None if what in _OF_OTHERS else what


def _special(address: IpAddress) -> tuple[IpNetwork, str] | None:
    address = ipv4_within(address)
    return next((entry for entry in _NOT_PUBLIC if address in entry[0]), None)


# --- rules -----------------------------------------------------------------------------------

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_BRACKETS: Final = re.compile(r"^\[([^\[\]]+)\](/\d+)?$")
_HOST: Final = re.compile(rf"(?:\*|(?:\*\.)?{_LABEL}(?:\.{_LABEL})*)\.?", re.ASCII)


@attrs.frozen(kw_only=True)
class OutboundRule:
    """Some destinations: a host pattern or a network, and ports of them."""

    host: str | None = None
    """A name, ``*.example.org`` for all below it, or ``*``; None where there is a network."""
    network: IpNetwork | None = None
    ports: tuple[tuple[int, int], ...] = ()
    """First and last of each range; none means all ports."""

    def names(self, host: str) -> bool:
        """Whether it is about this host by its name, already `canonical`."""
        if self.host is None:
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return self.host in ("*", host)

    def holds(self, address: IpAddress) -> bool:
        """Whether it is about this address."""
        return self.network is not None and (
            address in self.network or ipv4_within(address) in self.network
        )

    def opens(self, address: IpAddress, own: bool) -> bool:
        """Whether it is about this very address, or about the kind of network that it is in."""
        if not self.holds(address):
            return False
        assert self.network is not None
        if self.network.num_addresses == 1:
            return True
        special = _special(address)
        if special is None or (own and not ipv4_within(address).is_loopback):
            return False
        within = special[0]
        if isinstance(within, ipaddress.IPv4Network):
            return isinstance(self.network, ipaddress.IPv4Network) and self.network.subnet_of(
                within
            )
        return isinstance(self.network, ipaddress.IPv6Network) and self.network.subnet_of(within)

    def has_port(self, port: int) -> bool:
        """Whether it is about this port."""
        return not self.ports or any(first <= port <= last for first, last in self.ports)


def canonical(host: str) -> str:
    """A name as rules compare it: names know no case, and may end with the root's dot."""
    return host.lower().removesuffix(".")


def parse_rule(text: str) -> OutboundRule:
    """What ``PLACE`` or ``PLACE:PORTS`` says: ``*.example.org:443``, ``10.0.0.0/8:22,80``.

    Raises:
        ConfigError: it says nothing of the kind.
    """
    place, ports = _split(text)
    try:
        network = ipaddress.ip_network(_BRACKETS.sub(r"\1\2", place))
    except ValueError as error:
        numeric = not re.search("[A-Za-z*]", place) or "/" in place or ":" in place
        if numeric or not _HOST.fullmatch(place):
            raise _no_rule(text, str(error) if numeric else "that is no host") from None
        return OutboundRule(host=canonical(place), ports=ports)
    return OutboundRule(network=network, ports=ports)


def _split(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    place, colon, ports = text.rpartition(":")
    # An IPv6 address has colons of its own: with a port it stands in brackets.
    if not colon or (":" in place and not place.startswith("[")) or text.endswith("]"):
        return text, ()
    if place.startswith("[") and "]" not in place:
        return text, ()
    ranges = []
    for part in ports.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part, re.ASCII)
        if match is None:
            raise _no_rule(text, f"{part!r} is no port")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 < first <= last <= 65535:
            raise _no_rule(text, f"{part!r} is no port")
        ranges.append((first, last))
    return place, tuple(ranges)


def _no_rule(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is no rule for the outbound proxy: {why}.",
        remedy="A rule is a name, *.NAME, an address or a network, perhaps with ports: "
        "*.example.org:443, 192.168.1.0/24, [2001:db8::]/32:22,8000-8099.",
    )


def _rules(given: Iterable[str | OutboundRule]) -> tuple[OutboundRule, ...]:
    if isinstance(given, str):
        given = (given,)
    return tuple(parse_rule(one) if isinstance(one, str) else one for one in given)


# --- the policy ------------------------------------------------------------------------------


@attrs.frozen
class Verdict:
    """Whether a destination may be connected to, and why."""

    allowed: bool
    why: str


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ConfigError(f"OutboundPolicy.{attribute.name} must be more than 0, not {value!r}.")


@attrs.frozen(kw_only=True)
class OutboundPolicy:
    """What a guest may reach, and how much of it at once. The default: the public Internet."""

    allow: tuple[OutboundRule, ...] = attrs.field(default=(), converter=_rules)
    """Rules, or their text; see `parse_rule`."""
    deny: tuple[OutboundRule, ...] = attrs.field(default=(), converter=_rules)
    others: Literal["allow", "deny"] = attrs.field(default="allow")
    """What becomes of public destinations that no rule speaks of."""
    udp: bool = True
    """Whether datagrams are carried, as OpenVPN over UDP needs."""
    max_connections: int = attrs.field(default=512, validator=_positive)
    """More are refused, so that a guest can't take all of the host's descriptors."""
    max_handshakes: int = attrs.field(default=64, validator=_positive)
    """Clients that have not said yet what they want; one more, and the oldest is hung up on."""
    max_udp: int = attrs.field(default=16, validator=_positive)
    """UDP associations at once."""
    handshake_within_s: float = attrs.field(default=10.0, validator=_positive)
    """How long a client may take to say what it wants."""
    connect_within_s: float = attrs.field(default=30.0, validator=_positive)
    """How long resolving and connecting may take."""

    @others.validator
    def _check_others(self, _: object, value: str) -> None:
        if value not in ("allow", "deny"):
            raise ConfigError(f"OutboundPolicy.others is 'allow' or 'deny', not {value!r}.")

    def judge(self, host: str, address: IpAddress, port: int, *, own: bool = False) -> Verdict:
        """Whether a destination may be connected to.

        Args:
            host: The destination as the guest said it: a name or an address.
            address: What it resolved to, which is what will be connected to.
            port: The port.
            own: Whether the address is one of this host's own.
        """
        name = canonical(host)
        if rule := _first(self.deny, port, name, address):
            return Verdict(False, f"denied: {_text(rule)}")
        what = not_public(address)
        if own or what is not None:
            for rule in self.allow:
                if rule.has_port(port) and rule.opens(address, own):
                    return Verdict(True, f"allowed: {_text(rule)}")
            return Verdict(False, f"not public: {what}" if what else "it is this host itself")
        if rule := _first(self.allow, port, name, address):
            return Verdict(True, f"allowed: {_text(rule)}")
        if self.others == "allow":
            return Verdict(True, "public")
        return Verdict(False, "no rule allows it")

    def denies_name(self, host: str, port: int) -> Verdict | None:
        """A refusal that needs no address, so that the name is not even asked for; or None."""
        name = canonical(host)
        if rule := _first(self.deny, port, name, None):
            return Verdict(False, f"denied: {_text(rule)}")
        if self.others == "deny" and not any(
            rule.has_port(port) and (rule.network is not None or rule.names(name))
            for rule in self.allow
        ):
            return Verdict(False, "no rule allows it")
        return None


def _first(
    rules: Sequence[OutboundRule], port: int, name: str | None, address: IpAddress | None
) -> OutboundRule | None:
    for rule in rules:
        if rule.has_port(port) and (
            (name is not None and rule.names(name)) or (address is not None and rule.holds(address))
        ):
            return rule
    return None


def _text(rule: OutboundRule) -> str:
    ports = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in rule.ports)
    return f"{rule.host or rule.network}{':' if ports else ''}{ports}"
