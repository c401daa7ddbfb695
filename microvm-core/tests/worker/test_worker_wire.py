"""The wire: order kept, descriptors with their frames, nothing lost and nothing left open."""

import os
import resource
import socket
from collections.abc import Iterator

import pytest
import trio

from microvm.worker.wire import Wire

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near, far = map(Wire, ends)
    yield near, far
    near.close()
    far.close()


async def test_what_the_socket_does_not_take_at_once_comes_later_in_order(wires):
    near, far = wires
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.flush_forever)
        for number in range(50):
            near.post({"number": number, "text": "x" * 20_000})
        assert near.waiting > 0
        for number in range(50):
            assert (await far.receive()).message["number"] == number
        nursery.cancel_scope.cancel()
    assert near.waiting == 0


async def test_each_descriptor_comes_with_its_own_frame_and_is_not_inherited(wires):
    near, far = wires
    pipes = [os.pipe() for _ in range(20)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.flush_forever)
        for number, (read, _) in enumerate(pipes):
            near.post({"number": number, "text": "x" * 3000}, read)
            near.post({"between": number})
        for number, (_, write) in enumerate(pipes):
            received = await far.receive()
            assert received.message["number"] == number
            descriptor = received.take()
            assert not os.get_inheritable(descriptor)
            os.write(write, b"%d" % number)
            assert os.read(descriptor, 10) == b"%d" % number
            os.close(descriptor)
            os.close(write)
            between = await far.receive()
            assert between.take() is None
        nursery.cancel_scope.cancel()


def test_what_is_on_its_way_is_closed_with_the_wire(wires):
    near, far = wires
    for _ in range(3):
        near.post({}, os.open(os.devnull, os.O_RDONLY))
    far.receive_now().drop()
    far.close()
    near.post({"text": "x" * 100_000}, os.open(os.devnull, os.O_RDONLY))


def test_who_posts_to_nobody_is_not_told(wires):
    near, far = wires
    far.close()
    near.post({})
    near.post({"more": True}, os.open(os.devnull, os.O_RDONLY))
    with pytest.raises(EOFError):
        near.receive_now()


def test_a_message_too_long_closes_what_should_go_with_it(wires):
    near, _ = wires
    with pytest.raises(ValueError, match="are allowed"):
        near.post({"text": "x" * (3 << 20)}, os.open(os.devnull, os.O_RDONLY))


def test_a_full_descriptor_table_loses_the_descriptor_and_not_the_order(wires):
    near, far = wires
    near.post({"number": 1}, os.open(os.devnull, os.O_RDONLY))
    near.post({"number": 2}, os.open(os.devnull, os.O_RDONLY))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        first = far.receive_now()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (first.message["number"], first.take(), first.kept_out) == (1, None, True)
    second = far.receive_now()
    assert (second.message["number"], second.kept_out) == (2, False)
    second.drop()
