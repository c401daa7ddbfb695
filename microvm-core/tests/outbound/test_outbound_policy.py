"""What a guest may reach through its host: by the address that will be connected to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm import ConfigError
from microvm.outbound import (
    OutboundPolicy,
    OutboundRule,
    ipv4_within,
    not_public,
    parse_rule,
)

DEFAULT = OutboundPolicy()


def allowed(policy, host, address=None, port=443, own=False):
    ip = ipaddress.ip_address(address or host)
    return policy.judge(host, ip, port, own=own).allowed


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "2002:c0a8:101::8.8.8.8",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fe80::1",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "224.0.0.251",
        "ff02::1",
        "255.255.255.255",
        "192.88.99.1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",
        "3fff::1",
        "::ffff:0:7f00:1",
        "200::1",
        "5f00::1",
        "abcd::1",
    ],
)
def test_what_is_not_public_is_denied_by_whatever_name_it_came(address):
    """Row 92."""
    for host in (address, "innocent.example.com"):
        verdict = DEFAULT.judge(host, ipaddress.ip_address(address), 80)
        assert not verdict.allowed
        assert verdict.why.startswith("not public: ")
    everything = OutboundPolicy(allow=("*", "innocent.example.com", "0.0.0.0/0", "::/0"))
    assert not allowed(everything, "innocent.example.com", address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::101:101", "2002:101:101::"],
)
def test_the_public_internet_is_allowed_until_told_otherwise(address):
    assert allowed(DEFAULT, address)
    assert not allowed(OutboundPolicy(others="deny"), address)
    assert allowed(OutboundPolicy(others="deny", allow=(address,)), address)


def test_this_host_is_denied_at_any_of_its_addresses():
    """What listens on all of its addresses means the loopback too: no firewall is in between."""
    assert not allowed(DEFAULT, "1.1.1.1", own=True)
    assert not allowed(OutboundPolicy(allow=("1.1.1.0/24", "*")), "1.1.1.1", own=True)
    assert allowed(OutboundPolicy(allow=("1.1.1.1:443",)), "1.1.1.1", own=True)
    lan = OutboundPolicy(allow=("192.168.1.0/24",))
    assert allowed(lan, "192.168.1.9")
    assert not allowed(lan, "192.168.1.5", own=True)


def test_a_private_network_is_opened_by_naming_it_or_a_part_of_it():
    for rule in ("192.168.1.0/24", "192.168.0.0/16", "192.168.1.7"):
        assert allowed(OutboundPolicy(allow=(rule,)), "nas.example", "192.168.1.7")
    for rule in ("192.0.0.0/8", "0.0.0.0/0", "192.168.2.0/24", "nas.example"):
        assert not allowed(OutboundPolicy(allow=(rule,)), "nas.example", "192.168.1.7")
    assert allowed(OutboundPolicy(allow=("fd12::/16",)), "fd12::1")
    assert allowed(OutboundPolicy(allow=("127.0.0.1:8080",)), "127.0.0.1", port=8080, own=True)
    assert not allowed(OutboundPolicy(allow=("127.0.0.1:8080",)), "127.0.0.1", port=22, own=True)
    assert allowed(OutboundPolicy(allow=("10.0.0.0/8",)), "::ffff:10.0.0.1")


@pytest.mark.parametrize(
    ("network", "metadata"),
    [
        ("100.64.0.0/10", "100.100.100.200"),
        ("169.254.0.0/16", "169.254.169.254"),
        ("192.0.0.0/24", "192.0.0.192"),
        ("fc00::/7", "fd00:ec2::254"),
    ],
)
def test_a_network_does_not_open_a_clouds_metadata_in_it(network, metadata):
    assert not allowed(OutboundPolicy(allow=(network,)), metadata)
    assert allowed(OutboundPolicy(allow=(metadata,)), metadata)


def test_deny_is_stronger_than_allow():
    policy = OutboundPolicy(
        allow=("10.0.0.0/8", "*.example.org"), deny=("10.9.0.0/16", "bad.example.org")
    )
    assert allowed(policy, "10.8.0.1")
    assert not allowed(policy, "10.9.0.1")
    assert not allowed(policy, "::ffff:10.9.0.1")
    assert allowed(policy, "good.example.org", "1.1.1.1")
    assert not allowed(policy, "BAD.example.org.", "1.1.1.1")


@pytest.mark.parametrize(
    ("rule", "host", "port", "holds"),
    [
        ("*.example.org", "a.example.org", 1, True),
        ("*.example.org", "a.b.example.org", 1, True),
        ("*.example.org", "example.org", 1, False),
        ("*.example.org", "notexample.org", 1, False),
        ("example.org", "EXAMPLE.ORG.", 1, True),
        ("example.org:443,8000-8099", "example.org", 8099, True),
        ("example.org:443,8000-8099", "example.org", 8100, False),
        ("*:25", "any.example", 25, True),
        ("*:25", "any.example", 26, False),
    ],
)
def test_rules_by_name_and_port(rule, host, port, holds):
    policy = OutboundPolicy(others="deny", allow=(rule,))
    assert allowed(policy, host, "1.1.1.1", port) is holds
    assert (policy.denies_name(host, port) is None) is holds


def test_a_name_that_no_rule_allows_is_not_even_resolved():
    """A name asked of a name server can carry something out."""
    assert not OutboundPolicy(others="deny").denies_name("a.example", 80).allowed
    assert not OutboundPolicy(deny=("a.example",)).denies_name("a.example", 80).allowed
    assert OutboundPolicy().denies_name("a.example", 80) is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("10.0.0.0/8", OutboundRule(network=ipaddress.ip_network("10.0.0.0/8"))),
        (
            "[2001:db8::]/32:22",
            OutboundRule(network=ipaddress.ip_network("2001:db8::/32"), ports=((22, 22),)),
        ),
        ("[::1]:22", OutboundRule(network=ipaddress.ip_network("::1"), ports=((22, 22),))),
        ("::1", OutboundRule(network=ipaddress.ip_network("::1"))),
        ("fd00::/8", OutboundRule(network=ipaddress.ip_network("fd00::/8"))),
        ("Example.ORG.", OutboundRule(host="example.org")),
        ("*", OutboundRule(host="*")),
    ],
)
def test_rules_are_read(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    ["", "a b", "*.*.org", "10.0.0.1/8", "10.0.0.0/33", "a:0", "a:70000", "a:x", "a:9-8", "127.1",
     "2130706433", "http://a", "[::1", "a/b", "*a", "é.example"],
)  # fmt: skip
def test_what_is_no_rule_is_told_with_what_one_is(text):
    with pytest.raises(ConfigError, match="no rule for the outbound proxy"):
        parse_rule(text)


@pytest.mark.parametrize("words", [{"others": "maybe"}, {"max_udp": 0}, {"handshake_within_s": -1}])
def test_a_policy_that_exists_is_valid(words):
    with pytest.raises(ConfigError):
        OutboundPolicy(**words)


@given(st.ip_addresses())
def test_no_address_is_public_that_python_calls_loopback_link_local_or_private(address):
    """Two lists of one thing; Python's is older, and has neither metadata nor embedded IPv4."""
    inner = ipv4_within(address)
    if inner.is_loopback or inner.is_link_local or inner.is_multicast or inner.is_unspecified:
        assert not_public(address) is not None
    if inner.version == 4 and inner.is_private:
        assert not_public(address) is not None
    if inner.version == 6 and int(inner) >> 125 != 1:
        assert not_public(address) is not None, "2000::/3 alone is global unicast (RFC 4291, 2.4)"


@given(st.text(max_size=30))
def test_any_text_is_a_rule_or_a_config_error(text):
    try:
        rule = parse_rule(text)
    except ConfigError:
        return
    assert (rule.host is None) != (rule.network is None)
