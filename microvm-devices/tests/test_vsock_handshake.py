"""The CONNECT line, whole, byte by byte, and with the guest's bytes behind it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_devices.vsock.handshake import MAX_LINE_BYTES, BadConnectLine, ConnectLine

GOOD = [
    (b"CONNECT 52\n", 52),
    (b"connect 52\n", 52),
    (b"CoNnEcT 0\n", 0),
    (b"CONNECT 4294967295\n", 4294967295),
    (b"CONNECT 00000052\n", 52),
    (b"CONNECT   52  \n", 52),
    (b"CONNECT\t52\r\n", 52),
]
BAD = [
    b"\n",
    b"CONNECT\n",
    b"CONNECT \n",
    b"CONNECT52\n",
    b" CONNECT 52\n",
    b"CONNECT x\n",
    b"CONNECT 4294967296\n",
    b"CONNECT -1\n",
    b"CONNECT +1\n",
    b"CONNECT 1_0\n",
    b"CONNECT 1.0\n",
    b"CONNECT 0x10\n",
    b"CONNECT 52 53\n",
    b"CONNECT \xd9\xa3\n",
    b"CONNECT 52\0\n",
    b"GET / HTTP/1.1\r\n",
    b"OK 52\n",
    b"CONNECT 52" + b" " * MAX_LINE_BYTES + b"\n",
    b"x" * (MAX_LINE_BYTES + 1),
]


@pytest.mark.parametrize(("line", "port"), GOOD)
def test_a_good_line_names_a_port(line: bytes, port: int) -> None:
    parser = ConnectLine()
    assert parser.feed(line) == len(line)
    assert parser.port == port


@pytest.mark.parametrize(("line", "port"), GOOD)
def test_a_good_line_may_come_byte_by_byte(line: bytes, port: int) -> None:
    parser = ConnectLine()
    for index in range(len(line)):
        assert parser.port is None
        assert parser.feed(line[index : index + 1]) == 1
    assert parser.port == port


@pytest.mark.parametrize("tail", [b"\n", b"x", b"CONNECT 99\n", bytes(100)])
@pytest.mark.parametrize(("line", "port"), GOOD)
def test_what_follows_the_line_is_not_taken(line: bytes, port: int, tail: bytes) -> None:
    """Row 60: pipelined bytes are kept."""
    parser = ConnectLine()
    assert parser.feed(line + tail) == len(line)
    assert parser.port == port
    assert parser.feed(tail) == 0


@pytest.mark.parametrize("line", BAD)
def test_anything_else_is_refused_whole_and_byte_by_byte(line: bytes) -> None:
    """Row 60."""
    with pytest.raises(BadConnectLine):
        ConnectLine().feed(line)
    parser = ConnectLine()
    with pytest.raises(BadConnectLine):
        for index in range(len(line)):
            parser.feed(line[index : index + 1])


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_garbage_is_refused_or_waits_for_more_and_is_never_hoarded(pieces: list[bytes]) -> None:
    parser = ConnectLine()
    try:
        for piece in pieces:
            parser.feed(piece)
    except BadConnectLine:
        return
    assert len(parser._line) <= MAX_LINE_BYTES
