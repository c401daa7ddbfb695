"""The server's half: every request that a client may make, and what it is told of the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.socks5.server_half import Asked, Rejected, ServerHalf
from microvm_guest.socks5.wire import Command, Credentials, Destination, Reply

NO_METHOD = b"\x05\xff"
CONNECT_80 = b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"
SECRET = Credentials("joe", "sésame")


def said(half, *pieces):
    """Feed the pieces; what was answered in all."""
    answers = b""
    for piece in pieces:
        half.feed(piece)
        answers += half.outgoing()
    return answers


def refused(reply):
    return bytes((5, reply, 0, 1, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("raw", "host", "port"),
    [
        (b"\x01\x0a\x00\x00\x01\x00\x50", "10.0.0.1", 80),
        (b"\x04" + bytes(15) + b"\x01\xff\xff", "::1", 65535),
        (b"\x03\x0bexample.com\x01\xbb", "example.com", 443),
        (b"\x03\xff" + b"a" * 255 + b"\x00\x01", "a" * 255, 1),
    ],
    ids=["ipv4", "ipv6", "name", "longest name"],
)
def test_a_request_is_understood_whole_and_byte_by_byte(raw, host, port):
    message = b"\x05\x01\x00" + b"\x05\x01\x00" + raw
    for pieces in ([message], [message[i : i + 1] for i in range(len(message))]):
        half = ServerHalf()
        assert said(half, *pieces) == b"\x05\x00"
        assert half.event == Asked(Command.CONNECT, Destination(host, port))
        assert half.trailing == b""
        assert half.reply(Reply.SUCCEEDED, Destination("::1", 9)) == (
            b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x09"
        )


def test_what_follows_the_request_at_once_is_the_streams():
    half = ServerHalf()
    said(half, b"\x05\x01\x00" + CONNECT_80 + b"GET /")
    assert half.trailing == b"GET /"


@pytest.mark.parametrize("methods", [b"", b"\x01", b"\x02", bytes(range(1, 256))[:255]])
def test_no_acceptable_method_is_told(methods):
    """Row 91: nmethods 0, and none that will do."""
    half = ServerHalf()
    assert said(half, bytes((5, len(methods))) + methods) == NO_METHOD
    assert isinstance(half.event, Rejected)
    assert said(half, CONNECT_80) == b""


def test_255_methods_are_read_to_the_last():
    """Row 91."""
    half = ServerHalf()
    assert said(half, b"\x05\xff" + b"\x09" * 254) == b""
    assert said(half, b"\x00") == b"\x05\x00"


@pytest.mark.parametrize("first", [b"\x04\x01\x00\x50", b"GET / HTTP/1.1", b"\x16\x03\x01", b"\0"])
def test_another_protocol_gets_no_answer(first):
    """Row 91: version 4."""
    half = ServerHalf()
    assert said(half, first[:1], first[1:]) == b""
    assert "not SOCKS5" in half.event.why


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"\x05\x02\x00\x01\x0a\x00\x00\x01\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x03\x00\x01\x0a\x00\x00\x01\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x00\x00\x01\x0a\x00\x00\x01\x00\x50", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x01\x00\x00", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (b"\x05\x01\x00\x02", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (b"\x05\x01\x00\xff", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (b"\x05\x01\x00\x03\x00", Reply.HOST_UNREACHABLE),
        (b"\x05\x01\x00\x03\x04a\x00bc\x00\x50", Reply.HOST_UNREACHABLE),
        (b"\x05\x01\x00\x03\xff" + b"\x00" * 255 + b"\x00\x50", Reply.HOST_UNREACHABLE),
        (b"\x05\x01\x00\x03\x02\xc3\xa9\x00\x50", Reply.HOST_UNREACHABLE),
        (b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x00", Reply.CONNECTION_REFUSED),
        (b"\x04\x01\x00\x01\x0a\x00\x00\x01\x00\x50", Reply.GENERAL_FAILURE),
    ],
    ids=[
        "bind", "udp where there is none", "command 0", "type 0", "type 2", "type 255",
        "empty name", "NUL in a name", "255 NULs", "not ASCII", "port 0", "version 4",
    ],
)  # fmt: skip
def test_a_request_that_can_not_be_served_is_told_why(request_, reply):
    """Row 91: bad ATYP, domain length 0 and 255 with NUL, BIND and UDP, port 0."""
    half = ServerHalf()
    assert said(half, b"\x05\x01\x00", request_) == b"\x05\x00" + refused(reply)
    assert half.event.reply is reply
    assert said(half, b"more") == b""


def test_udp_may_be_asked_for_from_port_0():
    """RFC 1928, 4: a client that does not know yet from where it sends says zeros."""
    half = ServerHalf(commands=frozenset({Command.UDP_ASSOCIATE}))
    said(half, b"\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
    assert half.event == Asked(Command.UDP_ASSOCIATE, Destination("0.0.0.0", 0))


# --- RFC 1929 --------------------------------------------------------------------------------


def auth(name, word):
    name, word = name.encode(), word.encode()
    return bytes((1, len(name))) + name + bytes((len(word),)) + word


def test_who_knows_the_password_is_served():
    message = b"\x05\x02\x00\x02" + auth("joe", "sésame") + CONNECT_80
    for pieces in ([message], [message[i : i + 1] for i in range(len(message))]):
        half = ServerHalf(credentials=SECRET)
        assert said(half, *pieces) == b"\x05\x02\x01\x00"
        assert half.event == Asked(Command.CONNECT, Destination("10.0.0.1", 80))


@pytest.mark.parametrize(
    "attempt",
    [auth("joe", "open"), auth("jo", "sésame"), auth("joe", ""), auth("", ""), b"\x05"],
    ids=["word", "name", "empty word", "empty both", "version"],
)
def test_who_does_not_is_told_and_hears_no_more(attempt):
    half = ServerHalf(credentials=SECRET)
    assert said(half, b"\x05\x01\x02", attempt, CONNECT_80) == b"\x05\x02\x01\x01"
    assert isinstance(half.event, Rejected)


def test_nobody_is_served_without_a_password_where_there_is_one():
    half = ServerHalf(credentials=SECRET)
    assert said(half, b"\x05\x01\x00") == NO_METHOD


def test_a_password_is_not_shown():
    assert "sésame" not in repr(SECRET)


def test_who_reads_what_is_missing_never_reads_the_streams_bytes():
    message = b"\x05\x02\x00\x02" + auth("joe", "sésame") + CONNECT_80
    half, at = ServerHalf(credentials=SECRET), 0
    while half.event is None:
        assert half.missing > 0
        piece = message[at : at + half.missing]
        assert piece
        half.feed(piece)
        at += len(piece)
    assert (at, half.missing, half.trailing) == (len(message), 0, b"")


# --- hostile ---------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=600), max_size=6), st.booleans())
def test_whatever_comes_ends_in_one_event_or_waits(pieces, secret):
    """Row 91, fuzzed: the same however it is cut, answers bounded, no error of ours."""
    outcomes = []
    for cut in (pieces, [bytes([byte]) for piece in pieces for byte in piece]):
        half = ServerHalf(frozenset(Command), SECRET if secret else None)
        answers = said(half, *cut)
        assert len(answers) <= 2 + 2 + 10
        outcomes.append((answers, half.event, half.trailing))
    assert outcomes[0] == outcomes[1]


REQUEST = st.builds(
    lambda command, rest: b"\x05\x01\x00\x05" + bytes((command,)) + b"\x00" + rest,
    st.integers(0, 255),
    st.binary(max_size=300),
)


@given(REQUEST)
def test_whatever_request_follows_a_greeting_is_asked_refused_or_unfinished(raw):
    half = ServerHalf(frozenset(Command))
    answers = said(half, raw)
    match half.event:
        case None:
            assert answers == b"\x05\x00"
        case Asked(command=command):
            assert (command, answers) == (raw[4], b"\x05\x00")
            assert raw.endswith(half.trailing)
        case Rejected(reply=reply):
            assert answers == b"\x05\x00" + refused(reply)
