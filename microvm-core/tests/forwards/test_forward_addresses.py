"""Where forwards begin and lead: what is an address, and what ``HOST:GUEST`` says."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import ConfigError
from microvm.forwards import TcpAddress, UnixAddress, VsockAddress, parse_forward
from microvm.forwards.addresses import guest_address, host_address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "8080:80",
            {"host": "127.0.0.1", "port": 8080, "guest_host": "127.0.0.1", "guest_port": 80},
        ),
        (
            "0.0.0.0:8080:80",
            {"host": "0.0.0.0", "port": 8080, "guest_host": "127.0.0.1", "guest_port": 80},
        ),
        (
            "[::1]:0:10.0.2.2:80",
            {"host": "::1", "port": 0, "guest_host": "10.0.2.2", "guest_port": 80},
        ),
        ("/tmp/a.sock:80", {"path": "/tmp/a.sock", "guest_host": "127.0.0.1", "guest_port": 80}),
        ("1:/run/b", {"host": "127.0.0.1", "port": 1, "guest_path": "/run/b"}),
        ("9000:vsock:9001", {"host": "127.0.0.1", "port": 9000, "vsock_port": 9001}),
        ("/a:vsock:1", {"path": "/a", "vsock_port": 1}),
    ],
)
def test_a_forward_is_written_host_first(text, words):
    assert parse_forward(text) == words


@pytest.mark.parametrize(
    "text",
    ["", "80", "80:", ":80", "a:80", "80:b", "vsock:1:2", "1:2:3", "::1:80:80", "65536:1", "1:٣",
     "1.2.3:4:5", "relative:80", "80:80\n", "[::1%lo]:1:2"],
)  # fmt: skip
def test_what_is_no_forward_is_told_what_one_is(text):
    with pytest.raises(ConfigError):
        parse_forward(text)


@given(st.text(alphabet="0123456789:./[]vsock", max_size=30))
def test_any_text_is_a_forward_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        parse_forward(text)


@pytest.mark.parametrize("host", ["localhost", "", "127.1", "0177.0.0.1", "fe80::1%eth0", "::1\0"])
def test_hosts_are_numeric_addresses_in_their_usual_form(host):
    """Row 92: no octal or short forms, and no name that may mean something else the next time."""
    with pytest.raises(ConfigError):
        TcpAddress(host=host, port=1)


def test_addresses_read_as_people_write_them():
    assert str(TcpAddress(port=80)) == "127.0.0.1:80"
    assert str(TcpAddress(host="::1", port=80)) == "[::1]:80"
    assert str(UnixAddress(path="/a")) == "/a"
    assert str(VsockAddress(port=5)) == "vsock:5"


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_tcp_port_has_16_bits(port):
    with pytest.raises(ConfigError):
        TcpAddress(port=port)


@pytest.mark.parametrize("port", [-1, 2**32 - 1])
def test_a_vsock_port_is_one_that_can_be_bound(port):
    with pytest.raises(ConfigError):
        VsockAddress(port=port)


@pytest.mark.parametrize(
    "words",
    [
        (None, None, None, None),
        (None, 80, "/a", None),
        (None, 80, None, 1),
        (None, None, "/a", 1),
        ("10.0.0.1", None, "/a", None),
        ("10.0.0.1", None, None, None),
    ],
)
def test_one_place_in_the_guest_is_named(words):
    with pytest.raises(ConfigError, match="Name one place in the guest"):
        guest_address(*words)


def test_a_path_in_the_guest_fits_into_a_socket_address():
    assert guest_address(None, None, "/" + "x" * 106, None) == UnixAddress(path="/" + "x" * 106)
    with pytest.raises(ConfigError, match="107 bytes"):
        guest_address(None, None, "/" + "x" * 107, None)


def test_one_place_on_the_host_is_named():
    assert host_address(None, None, None, default_port=0) == TcpAddress(port=0)
    assert host_address(None, 5, None) == TcpAddress(port=5)
    with pytest.raises(ConfigError, match="not both"):
        host_address(None, 5, "/a")
    with pytest.raises(ConfigError, match="port= or path="):
        host_address("127.0.0.1", None, None)
