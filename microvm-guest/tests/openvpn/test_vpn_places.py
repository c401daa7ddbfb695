"""Where the way of a guest's OpenVPN leads: to its servers, and never by a name to this host."""

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from microvm.outbound import OutboundPolicy
from microvm_guest.openvpn.places import MAX_ADDRESSES, Found, NoWay, Places
from microvm_guest.openvpn.states import VpnReason
from microvm_guest.socks5.connector import MAX_LOOKUPS

PROXY_PORT = 1082


class Hole:
    """A proxy in the guest, until it is closed."""

    def __init__(self, policy: OutboundPolicy) -> None:
        self.policy = policy
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


class Host:
    """A machine of which nothing is asked but proxies."""

    def __init__(self) -> None:
        self.holes: list[Hole] = []

    async def outbound_proxy(self, policy: OutboundPolicy, *, guest_port: int) -> Hole:
        assert guest_port == PROXY_PORT
        self.holes.append(Hole(policy))
        return self.holes[-1]

    @property
    def opened(self) -> list[str]:
        """The one rule of each proxy that is open."""
        rules = [hole.policy.allow for hole in self.holes if not hole.closed]
        assert all(hole.policy.others == "deny" for hole in self.holes)
        return [f"{rule.network} {rule.ports[0][0]}" for (rule,) in rules]


Answers = Callable[..., None]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Have every name resolve to these; addresses stay what they are."""
    real = socket.getaddrinfo

    def resolve_to(*addresses: str) -> None:
        def getaddrinfo(host: str, port: int, family: int = 0, **kind: Any) -> list[Any]:
            asked = [host] if host[0].isdigit() or ":" in host else addresses
            found = [entry for one in asked for entry in real(one, port, **kind)]
            return [entry for entry in found if family in (0, entry[0])]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve_to


def places(host: Host, *, proxy: bool = True) -> Places:
    return Places(host, PROXY_PORT if proxy else None)  # type: ignore[arg-type]


async def test_the_proxy_is_opened_for_one_address_and_port_at_a_time(names: Answers) -> None:
    host = Host()
    ways = places(host)
    names("192.0.2.1", "2001:db8::1")
    assert await ways.find("vpn.example", 1194, "udp") == Found("192.0.2.1", untried=1)
    assert host.opened == ["192.0.2.1/32 1194"]
    found = await ways.find("vpn.example", 1194, "udp")
    assert found == Found("2001:db8::1", untried=0), "each has its turn"
    assert host.opened == ["2001:db8::1/128 1194"]
    assert await ways.find("vpn.example", 1194, "udp") == Found("192.0.2.1", untried=1)
    assert await ways.find("vpn.example", 1194, "udp4") == Found("192.0.2.1", untried=0)
    assert await ways.find("vpn.example", 1194, "tcp6-client") == Found("2001:db8::1", untried=0)
    await ways.aclose()
    assert host.opened == []


async def test_each_address_is_tried_in_whatever_order_a_name_server_tells_them(
    names: Answers,
) -> None:
    """Many turn them round at each question."""
    ways = places(Host())
    tried = []
    for order in ("123", "231", "312", "231"):
        names(*(f"203.0.113.{number}" for number in order))
        tried.append(await ways.find("vpn.example", 1194, "udp"))
    one, two, three = (f"203.0.113.{number}" for number in "123")
    assert tried == [Found(one, 2), Found(two, 1), Found(three, 0), Found(two, 2)]


async def test_each_protocol_has_turns_of_its_own(names: Answers) -> None:
    ways = places(Host())
    names("203.0.113.1", "203.0.113.2")
    for address in ("203.0.113.1", "203.0.113.2"):
        for proto in ("udp", "tcp-client"):
            found = await ways.find("vpn.example", 1194, proto)
            assert isinstance(found, Found)
            assert found.address == address


async def test_of_a_names_addresses_some_are_enough(names: Answers) -> None:
    ways = places(Host())
    names(*(f"203.0.113.{number}" for number in range(1, 100)))
    found = [await ways.find("vpn.example", 1194, "udp") for _ in range(MAX_ADDRESSES + 1)]
    assert found[0] == found[-1] == Found("203.0.113.1", MAX_ADDRESSES - 1)
    assert found[-2] == Found(f"203.0.113.{MAX_ADDRESSES}", 0)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.9.1", "0.0.0.0", "169.254.169.254", "100.100.100.200", "168.63.129.16",
     "192.0.0.192", "255.255.255.255", "224.0.0.1", "::1", "::", "::ffff:7f00:1", "fe80::1",
     "fd00:ec2::254", "64:ff9b::7f00:1", "::7f00:1"],
)  # fmt: skip
async def test_no_name_leads_to_the_host_itself_or_to_metadata(
    names: Answers, address: str
) -> None:
    """Whoever answers for the name may say so at any time (DNS rebinding)."""
    host = Host()
    names(address)
    found = await places(host).find("vpn.example", 22, "tcp-client")
    assert isinstance(found, NoWay)
    assert found.reason is VpnReason.NAME_REFUSED
    assert found.said.startswith(f"vpn.example is at {ipaddress.ip_address(address)}: ")
    assert host.holes == []


async def test_nor_to_an_address_that_is_this_hosts_own(names: Answers) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this host has no address but loopback's")
        own = probe.getsockname()[0]
    names(own)
    found = await places(Host()).find("vpn.example", 22, "udp")
    assert found == NoWay(VpnReason.NAME_REFUSED, f"vpn.example is at {own}: this host itself.")


@pytest.mark.parametrize("name", ["localhost", "127.1", "2130706433", "0x7f000001"])
async def test_an_address_in_another_spelling_is_a_name(name: str) -> None:
    found = await places(Host()).find(name, 22, "tcp-client")
    assert isinstance(found, NoWay)
    assert found.reason is VpnReason.NAME_REFUSED


async def test_of_several_addresses_those_that_are_not_refused_are_taken(names: Answers) -> None:
    ways = places(Host())
    names("127.0.0.1", "10.99.7.2", "::1")
    for _ in range(3):
        assert await ways.find("vpn.example", 1194, "udp") == Found("10.99.7.2", 0)


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.1.1", "100.64.0.1", "198.18.0.7", "fd00::1"]
)
async def test_a_name_may_lead_into_a_private_network(names: Answers, address: str) -> None:
    """A company's VPN; and where a resolver answers with addresses of its own (198.18.0.0/15)."""
    names(address)
    assert await places(Host()).find("vpn.example", 1194, "udp") == Found(address, 0)


async def test_an_address_that_the_configuration_itself_names_is_gone_to() -> None:
    """A wrapper of this host's, such as stunnel."""
    host = Host()
    assert await places(host).find("127.0.0.1", 1194, "tcp-client") == Found("127.0.0.1", 0)
    assert host.opened == ["127.0.0.1/32 1194"]


async def test_a_guest_with_a_network_of_its_own_is_told_addresses_of_ipv4(names: Answers) -> None:
    host = Host()
    names("2001:db8::1", "192.0.2.1")
    found = await places(host, proxy=False).find("vpn.example", 1194, "udp")
    assert found == Found("192.0.2.1", 0)
    assert host.holes == []


async def test_a_name_that_is_nobodys_is_not_found() -> None:
    for name in ("nobody.invalid", "a" * 64 + ".example", "..", "a\0b"):
        found = await places(Host()).find(name, 1194, "udp")
        assert found == NoWay(VpnReason.NAME_NOT_FOUND)


@pytest.fixture
def silent_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Nobody answers until the end; the names that have been asked for."""
    asked: list[str] = []
    answered = threading.Event()

    def getaddrinfo(host: str, *words: Any, **more: Any) -> list[Any]:
        asked.append(host)
        answered.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    answered.set()


async def test_names_without_an_answer_take_no_thread_from_anybody_else(
    silent_resolver: list[str],
) -> None:
    """A hostile daemon asks again and again, and each time the last question is given up."""
    ways = places(Host())
    for _ in range(10 * MAX_LOOKUPS):
        with trio.move_on_after(0.01):
            await ways.find("vpn.example", 1194, "udp")
    assert len(silent_resolver) == MAX_LOOKUPS
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    with trio.fail_after(10):
        assert await trio.to_thread.run_sync(lambda: "others go on") == "others go on"
