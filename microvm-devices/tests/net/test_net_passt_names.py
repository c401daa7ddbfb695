"""Which name servers passt is to tell a guest of, from what a host's files say."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from microvm.errors import ConfigError
from microvm_devices.net.passt import plugin
from microvm_devices.net.passt.name_servers import (
    RESOLV_CONF,
    UPSTREAMS,
    HostNameServers,
    host_name_servers,
    reachable,
    servers_in,
    what_is_missing,
    words,
)
from microvm_devices.net.passt.options import PasstOptions, read_options

RESOLVED, NETWORK_MANAGER = UPSTREAMS
STUB = "# made by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n"


def host(files: Mapping[Path, str]) -> HostNameServers:
    def read(path: Path) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return host_name_servers(read)


def told(files: Mapping[Path, str], options: PasstOptions) -> tuple[list[str], bool]:
    """What passt is told, and whether the user is warned."""
    found = host(files)
    return words(options, found), what_is_missing(options, found) is not None


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ()),
        (STUB, ("127.0.0.53",)),
        ("nameserver\t192.0.2.1\nnameserver 2001:db8::1 # home", ("192.0.2.1", "2001:db8::1")),
        ("nameserver fe80::1%eth0", ("fe80::1%eth0",)),
        ("nameserver 192.0.2.1", ("192.0.2.1",)),
        (" nameserver 192.0.2.1\n;nameserver 192.0.2.2\n#nameserver 192.0.2.3", ()),
        ("nameserver\nnameserver somewhere\nnameserver2 192.0.2.1\nnameserver=192.0.2.1", ()),
    ],
)
def test_a_files_name_servers_are_those_that_a_c_library_would_ask(text, servers) -> None:
    assert servers_in(text) == servers


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.53", "::1", "0.0.0.0", "::", "fe80::1%eth0", "169.254.1.1"]
)
def test_an_address_that_is_somebody_else_to_a_guest_is_not_reachable(address: str) -> None:
    assert reachable((address, "192.0.2.1")) == ("192.0.2.1",)


def test_passt_takes_three_of_an_ip_version() -> None:
    servers = [f"192.0.2.{last}" for last in range(5)] + [f"2001:db8::{last}" for last in range(5)]
    random.Random(4).shuffle(servers)
    found = reachable(tuple(servers))
    assert [sum(mark in server for server in found) for mark in ".:"] == [3, 3]
    assert [server for server in servers if "." in server][:3] == list(found[:3])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # What passt reads by itself.
        ({RESOLV_CONF: "nameserver 192.0.2.1"}, ([], False)),
        ({RESOLV_CONF: f"{STUB}nameserver 192.0.2.1", RESOLVED: "nameserver 192.0.2.2"}, (
            [], False,
        )),
        # systemd-resolved, as Ubuntu and Fedora have it, and NetworkManager with a dnsmasq.
        ({RESOLV_CONF: STUB, RESOLVED: "nameserver 192.0.2.2\nnameserver 2001:db8::2"}, (
            ["--dns", "192.0.2.2", "--dns", "2001:db8::2"], False,
        )),
        ({RESOLV_CONF: "nameserver 127.0.0.1", NETWORK_MANAGER: "nameserver 192.0.2.3"}, (
            ["--dns", "192.0.2.3"], False,
        )),
        ({RESOLV_CONF: STUB, RESOLVED: STUB, NETWORK_MANAGER: "nameserver 192.0.2.3"}, (
            ["--dns", "192.0.2.3"], False,
        )),
        # Nothing that a guest could ask.
        ({RESOLV_CONF: STUB}, ([], True)),
        ({RESOLV_CONF: STUB, RESOLVED: "nameserver 127.0.0.1"}, ([], True)),
        ({RESOLV_CONF: ""}, ([], True)),
        ({}, ([], True)),
    ],
)  # fmt: skip
def test_a_guest_gets_the_hosts_name_servers_or_those_that_they_ask(files, expected) -> None:
    assert told(files, PasstOptions()) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # passt gives the gateway's address, and leads it to the stub.
        ({RESOLV_CONF: STUB, RESOLVED: "nameserver 192.0.2.2"}, ([], False)),
        ({RESOLV_CONF: STUB}, ([], False)),
        # Were this the gateway too, questions to it would go to the host's own port 53.
        ({RESOLV_CONF: "nameserver 192.0.2.1"}, (["--dns-forward", "192.0.2.1"], False)),
        ({RESOLV_CONF: f"{STUB}nameserver 192.0.2.1"}, ([], False)),
        ({}, ([], True)),
    ],
)
def test_a_guest_that_reaches_the_host_asks_the_hosts_own(files, expected) -> None:
    assert told(files, PasstOptions(host_access=True)) == expected


@pytest.mark.parametrize("files", [{}, {RESOLV_CONF: STUB, RESOLVED: "nameserver 192.0.2.2"}])
@pytest.mark.parametrize("host_access", [False, True])
def test_name_servers_that_were_given_are_all_there_are(files, host_access: bool) -> None:
    options = PasstOptions(dns=("192.0.2.9",), host_access=host_access)
    assert told(files, options) == (["--dns", "192.0.2.9"], False)


def test_who_is_warned_is_told_what_to_write() -> None:
    said = what_is_missing(PasstOptions(), host({RESOLV_CONF: STUB}))
    assert said is not None
    assert "127.0.0.53" in said
    for remedy in ("passt:dns=192.0.2.9", "passt:host"):
        assert remedy.replace("192.0.2.9", "ADDRESS") in said
        options = read_options(plugin.parse_cli(remedy.partition(":")[2]))
        assert what_is_missing(options, host({RESOLV_CONF: STUB})) is None


# --- the command line's words --------------------------------------------------------------------


def test_what_stands_behind_passt_becomes_options() -> None:
    text = "dns=192.0.2.1,tcp=8080:80,host,dns=2001:db8::1,tcp=0.0.0.0/443,udp=53"
    assert plugin.parse_cli(text) == {
        "dns": ["192.0.2.1", "2001:db8::1"],
        "tcp_ports": ["8080:80", "0.0.0.0/443"],
        "udp_ports": ["53"],
        "host_access": True,
    }
    assert read_options(plugin.parse_cli(text)).tcp_ports[0] == "127.0.0.1/8080:80"
    assert plugin.parse_cli("") == {}


@pytest.mark.parametrize("text", ["fast", "dns", "dns=", "host=1", "host,", ",host", "tcp_ports=1"])
def test_what_means_nothing_behind_passt_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="means nothing there"):
        plugin.parse_cli(text)
