"""The real agent's datagrams: a UDP port of the guest's, framed on the host's stream."""

import os
import socket
import struct

import pytest
import trio

from microvm.abc import GuestChannels
from microvm.forwards import TcpAddress, UnixAddress
from microvm_guest.forwarding import datagrams_at
from microvm_guest.protocol.forwards import (
    DATAGRAM,
    MAX_FORWARDS,
    REPLY,
    ForwardRequest,
    _encode,
    encode_datagrams,
)

EINVAL, EADDRINUSE = 22, 98
LONGEST = 65507
"""Of a UDP datagram over IPv4."""


@pytest.fixture(scope="module")
def path(agent, tmp_path_factory):
    with agent.listening(tmp_path_factory.mktemp("udp"), "--forward-fd") as path:
        yield path


def asked(path, raw):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(path))
    sock.sendall(raw)
    return sock


def receive(sock, length):
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        assert piece
        data += piece
    return data


def opened(path, host="127.0.0.1"):
    """The host's stream, and the address that a program in the guest sends to."""
    sock = asked(path, encode_datagrams(TcpAddress(host=host, port=0)))
    error, port = REPLY.unpack(receive(sock, REPLY.size))
    assert error == 0
    return sock, (host, port)


def frame(data):
    return DATAGRAM.pack(len(data)) + data


def receive_frame(sock):
    (length,) = DATAGRAM.unpack(receive(sock, DATAGRAM.size))
    return receive(sock, length)


@pytest.fixture
def program():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        yield sock


@pytest.mark.parametrize("length", [0, 1, 1400, LONGEST])
def test_datagrams_go_both_ways_whole(path, program, length):
    data = os.urandom(length)
    host, address = opened(path)
    with host:
        program.sendto(data, address)
        assert receive_frame(host) == data
        host.sendall(frame(data))
        assert program.recv(70000) == data


def test_an_ipv6_port_works_too(path):
    host, address = opened(path, "::1")
    with host, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as program:
        program.sendto(b"six", address)
        assert receive_frame(host) == b"six"


def test_a_frame_may_come_byte_by_byte_and_several_at_once(path, program):
    host, address = opened(path)
    with host:
        program.sendto(b"first", address)
        assert receive_frame(host) == b"first"
        for byte in frame(b"in pieces"):
            host.sendall(bytes((byte,)))
        assert program.recv(99) == b"in pieces"
        host.sendall(frame(b"one") + frame(b"two") + frame(b"three"))
        assert [program.recv(99) for _ in range(3)] == [b"one", b"two", b"three"]


def test_nobody_but_the_first_who_sent_is_heard(path, program):
    host, address = opened(path)
    with host, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        program.sendto(b"first", address)
        assert receive_frame(host) == b"first"
        stranger.sendto(b"stranger", address)
        program.sendto(b"second", address)
        assert receive_frame(host) == b"second"


def test_what_comes_for_a_program_that_is_not_there_is_dropped(path):
    host, address = opened(path)
    with host:
        host.sendall(frame(b"to nobody"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.sendto(b"here", address)
            assert receive_frame(host) == b"here"
        for _ in range(20):  # its port is closed: the kernel says so, and nobody minds
            host.sendall(frame(b"gone"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"not mine", address)
        other_host, _ = opened(path)
        other_host.close()


def test_a_host_that_does_not_read_costs_datagrams_and_no_memory(path, program):
    """Bounded: the kernel drops what nobody fetches."""
    host, address = opened(path)
    with host:
        data = bytes(60000)
        for _ in range(500):
            program.sendto(data, address)
        got = 0
        host.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:
                assert len(receive_frame(host)) == len(data)
                got += 1
        assert 0 < got < 500
        host.settimeout(30)
        program.sendto(b"after", address)
        assert receive_frame(host) == b"after"


def test_a_port_ends_with_its_host(path, program):
    host, address = opened(path)
    host.close()
    for _ in range(3000):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            try:
                again.bind(address)
            except OSError:
                continue
            break
    else:
        pytest.fail("the port is still there")


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (_encode(ForwardRequest.DATAGRAMS, TcpAddress(port=0), 7), EINVAL),
        (_encode(ForwardRequest.DATAGRAMS, UnixAddress(path="/tmp/x"), 0), EINVAL),
    ],
    ids=["a port of the host's", "a path"],
)
def test_what_can_not_be_is_refused(path, raw, error):
    with asked(path, raw) as host:
        assert REPLY.unpack(receive(host, REPLY.size)) == (error, 0)
        assert host.recv(1) == b""


def test_a_port_that_is_taken_is_told(path, program):
    program.bind(("127.0.0.1", 0))
    taken = encode_datagrams(TcpAddress(port=program.getsockname()[1]))
    with asked(path, taken) as host:
        assert REPLY.unpack(receive(host, REPLY.size)) == (EADDRINUSE, 0)


def test_associations_count_among_the_forwards(path):
    """They end, and their places with them: more in turn than there is room for at once."""
    for _ in range(MAX_FORWARDS + 50):
        host, _ = opened(path)
        host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        host.close()


class Beside(GuestChannels):
    """The channels to an agent that runs beside us."""

    def __init__(self, path):
        self.path = path

    async def connect(self, port):
        return await trio.open_unix_socket(self.path)

    def listen(self, port):
        raise NotImplementedError


async def test_the_hosts_side_asks_for_it(path, program):
    stream, port = await datagrams_at(Beside(path), TcpAddress(port=0))
    async with stream:
        program.sendto(b"x", ("127.0.0.1", port))
        assert await stream.receive_some(3) == frame(b"x")
