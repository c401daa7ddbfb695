"""The host's end over a real socketpair with little room."""

import os
import socket
from collections.abc import Iterator

import pytest

from microvm_devices.vsock.connection import State, VsockConnection
from microvm_devices.vsock.endpoint import HostEnd


@pytest.fixture
def pair() -> Iterator[tuple[HostEnd, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    conn = VsockConnection(host_port=1, guest_port=2, buf_alloc=16 * 1024, state=State.OPEN)
    end = HostEnd(conn, ours)
    yield end, theirs
    end.close()
    theirs.close()


def views(data: bytes, size: int) -> list[memoryview]:
    return [memoryview(data)[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("size", [100_000, 30_000, 999, 50])
def test_what_the_socket_does_not_take_is_kept_once_and_in_order(
    pair: tuple[HostEnd, socket.socket], size: int
) -> None:
    end, theirs = pair
    data = os.urandom(100_000)
    taken = end.write(views(data, size), len(data))
    assert 0 < taken < len(data)
    assert end.backlog == data[taken:]
    # While something is kept, the next bytes go behind it.
    assert end.write([memoryview(b"behind")], 6) == 0
    received = b""
    flushes = 0
    while len(received) < len(data) + 6:
        received += theirs.recv(20_000)
        if end.backlog:
            flushes += end.flush() > 0
    assert received == data + b"behind"
    assert flushes > 1


def test_a_full_socket_takes_nothing_and_is_no_error(
    pair: tuple[HostEnd, socket.socket],
) -> None:
    end, _ = pair
    while end.write([memoryview(bytes(1000))], 1000) == 1000:
        pass
    kept = bytes(end.backlog)
    assert end.flush() == 0
    assert end.backlog == kept


def test_a_host_that_is_gone_raises_and_nothing_is_kept(
    pair: tuple[HostEnd, socket.socket],
) -> None:
    end, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        end.write([memoryview(b"abc")], 3)
    assert not end.backlog


def test_more_views_than_a_system_call_takes_are_sent_in_order(
    pair: tuple[HostEnd, socket.socket],
) -> None:
    end, theirs = pair
    data = os.urandom(3000)
    taken = end.write(views(data, 1), len(data))
    assert taken == 1024
    end.flush()
    assert theirs.recv(4000) == data


def test_reading_fills_many_views_and_tells_nothing_from_the_end(
    pair: tuple[HostEnd, socket.socket],
) -> None:
    end, theirs = pair
    buffers = [memoryview(bytearray(3)), memoryview(bytearray(5))]
    with pytest.raises(BlockingIOError):
        end.read_into(buffers)
    theirs.send(b"abcdef")
    assert end.read_into(buffers) == 6
    assert b"".join(buffers) == b"abcdef\0\0"
    theirs.close()
    assert end.read_into(buffers) == 0


def test_closing_twice_is_once(pair: tuple[HostEnd, socket.socket]) -> None:
    end, theirs = pair
    end.close()
    end.close()
    end.shut(socket.SHUT_WR)
    assert theirs.recv(1) == b""
