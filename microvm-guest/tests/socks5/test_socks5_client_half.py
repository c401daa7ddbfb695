"""The client's half, against servers right and wrong; and the two halves with each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm import ConfigError
from microvm.errors import GuestProtocolError
from microvm_guest.socks5.client_half import Answer, ClientHalf
from microvm_guest.socks5.server_half import Asked, ServerHalf
from microvm_guest.socks5.wire import (
    Credentials,
    Destination,
    Reply,
    decode_datagram,
    encode_datagram,
)

OK = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x1f\x90"
HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255),
)
DESTINATIONS = st.builds(Destination, HOSTS, st.integers(1, 65535))


@pytest.mark.parametrize("reply", Reply)
def test_each_reply_is_told_with_what_follows_it_kept(reply):
    client = ClientHalf(Destination("example.com", 443))
    assert client.outgoing() == b"\x05\x01\x00"
    client.feed(b"\x05\x00")
    assert client.outgoing() == b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
    raw = b"\x05" + bytes((reply,)) + OK[2:] + b"SSH-2.0"
    for byte in raw[:-7]:
        assert client.answer is None
        client.feed(bytes((byte,)))
    client.feed(raw[-7:])
    assert client.answer == Answer(reply, Destination("127.0.0.1", 8080))
    assert client.trailing == b"SSH-2.0"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400",
        b"\x04",
        b"\x05\xff",
        b"\x05\x02",
        b"\x05\x00\x04",
        b"\x05\x00\x05\x09\x00\x01",
        b"\x05\x00\x05\x00\x00\x07",
        b"\x05\x00\x05\x00\x00\x03\x00",
    ],
    ids=["http", "v4", "none", "password", "reply v4", "code 9", "type 7", "empty name"],
)
def test_a_server_that_breaks_the_protocol_is_an_error_of_the_guests(raw):
    client = ClientHalf(Destination("10.0.0.1", 1))
    with pytest.raises(GuestProtocolError):
        client.feed(raw)


def test_a_password_that_is_refused_is_told():
    client = ClientHalf(Destination("10.0.0.1", 1), credentials=Credentials("a", "b"))
    assert client.outgoing() == b"\x05\x02\x00\x02"
    client.feed(b"\x05\x02")
    assert client.outgoing() == b"\x01\x01a\x01b"
    with pytest.raises(GuestProtocolError, match="refused the name and password"):
        client.feed(b"\x01\x01")


@given(DESTINATIONS, DESTINATIONS, st.booleans())
def test_who_reads_what_is_missing_never_reads_the_streams_bytes(destination, bound, secret):
    credentials = Credentials("joe", "word") if secret else None
    client = ClientHalf(destination, credentials=credentials)
    server = ServerHalf(credentials=credentials)
    waiting = b""
    while client.answer is None:
        server.feed(client.outgoing())
        waiting += server.outgoing()
        if isinstance(server.event, Asked) and not waiting:
            waiting = server.reply(Reply.SUCCEEDED, bound) + b"stream"
        piece, waiting = waiting[: client.missing], waiting[client.missing :]
        assert piece
        client.feed(piece)
    assert (client.missing, client.trailing, waiting) == (0, b"", b"stream")


@given(DESTINATIONS, st.binary(max_size=20), st.booleans(), st.integers(1, 40))
def test_the_halves_understand_each_other_however_they_are_cut(destination, more, secret, size):
    credentials = Credentials("joe", "word") if secret else None
    client, server = (
        ClientHalf(destination, credentials=credentials),
        ServerHalf(credentials=credentials),
    )

    def pass_on(data, to):
        for begin in range(0, len(data), size):
            to.feed(data[begin : begin + size])

    while server.event is None:
        pass_on(client.outgoing(), server)
        pass_on(server.outgoing(), client)
    assert isinstance(server.event, Asked)
    assert server.event.destination.port == destination.port
    bound = Destination("10.9.8.7", 6)
    pass_on(server.reply(Reply.SUCCEEDED, bound) + more, client)
    assert client.answer == Answer(Reply.SUCCEEDED, bound)
    assert client.trailing == more


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_whatever_a_server_says_is_an_answer_an_error_or_unfinished(pieces):
    client = ClientHalf(Destination("10.0.0.1", 1), credentials=Credentials("a", "b"))
    try:
        for piece in pieces:
            client.feed(piece)
    except GuestProtocolError:
        assert client.answer is None


@pytest.mark.parametrize("host", ["", "a b", "bücher.example", "a\0b", "x" * 256])
def test_a_host_that_can_not_be_said_is_refused_before_anything_is_sent(host):
    """CVE-2023-38545 was a name too long for its length byte."""
    with pytest.raises(ConfigError):
        Destination(host, 1)


@pytest.mark.parametrize("port", [-1, 65536, "80", True])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ConfigError):
        Destination("a", port)


# --- datagrams -------------------------------------------------------------------------------


@given(st.ip_addresses().map(str), st.integers(0, 65535), st.binary(max_size=2000))
def test_a_datagram_comes_out_as_it_went_in(host, port, data):
    destination = Destination(host, port)
    assert decode_datagram(encode_datagram(destination, data)) == (destination, data)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\0",
        b"\0\0\x01\x01\x0a\0\0\x01\0\x50data",
        b"\0\0\0\x02\x0a\0\0\x01\0\x50data",
        b"\0\0\0\x01\x0a\0\0\x01\0",
        b"\0\0\0\x03\0\0\x50data",
    ],
    ids=["empty", "no address", "fragment", "type 2", "short", "no name"],
)
def test_what_is_no_datagram_is_dropped(raw):
    assert decode_datagram(raw) is None


@given(st.binary(max_size=100))
def test_any_bytes_are_a_datagram_or_none(raw):
    found = decode_datagram(raw)
    assert found is None or raw.endswith(found[1])
