"""Frames over sockets: QEMU's framing on a stream, and one a datagram."""

import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from microvm.errors import ConfigError, NetLinkDown
from microvm_devices.net.packet import MAX_FRAME_BYTES
from microvm_devices.net.socket import plugin
from microvm_devices.net.stream import StreamLink
from microvm_devices.net.testing import ethernet

Ends = tuple[StreamLink, socket.socket]


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


def views(*pieces: bytes) -> list[bytes | memoryview]:
    return [pieces[0], *map(memoryview, pieces[1:])]


def received(link: StreamLink, room: int = MAX_FRAME_BYTES) -> bytes | None:
    buffer = bytearray(room)
    length = link.receive([memoryview(buffer)])
    return None if length is None else bytes(buffer[:length])


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield StreamLink(ours), theirs


def test_frames_are_sent_by_one_call_each_behind_its_length(ends: Ends) -> None:
    link, peer = ends
    assert link.send([views(b"one", b"two"), views(b"three")]) == 2
    assert peer.recv(100) == framed(b"onetwo", b"three")
    assert not link.blocked


def test_more_pieces_than_one_call_takes_are_several(ends: Ends) -> None:
    link, peer = ends
    frames = [views(*[b"%d" % (i % 10)] * 200) for i in range(20)]
    assert link.send(frames) == 20
    assert peer.recv(1 << 20) == framed(*(b"".join(frame) for frame in frames))


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
@how(max_examples=100, deadline=None)
def test_frames_are_received_however_the_stream_is_cut(
    frames: list[bytes], data: st.DataObject
) -> None:
    stream = framed(*frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link, got = StreamLink(ours), []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            theirs.sendall(stream[start:end])
            while (frame := received(link)) is not None:
                got.append(frame)
        assert got == frames


def test_a_frame_that_has_begun_near_the_buffers_end_is_received_whole(ends: Ends) -> None:
    link, peer = ends
    frames = [bytes([index]) * 60_001 for index in range(40)]
    stream, got = framed(*frames), []
    while stream:
        # Never at a frame's end: the buffer is not empty until the last.
        stream = stream[peer.send(stream[:50_000]) :]
        while (frame := received(link)) is not None:
            got.append(frame)
    assert got == frames


def test_empty_frames_are_frames_and_a_peer_that_sends_them_without_end_holds_nobody_up(
    ends: Ends,
) -> None:
    """The device drops them, so many a turn as of others."""
    link, peer = ends
    peer.sendall(framed(b"", b"", b"x", b""))
    assert [received(link) for _ in range(5)] == [b"", b"", b"x", b"", None]


def test_a_frame_is_scattered_and_what_does_not_fit_is_lost_with_its_length_told(
    ends: Ends,
) -> None:
    link, peer = ends
    peer.sendall(framed(b"0123456789", b"next"))
    pieces = [bytearray(3), bytearray(4)]
    assert link.receive([memoryview(piece) for piece in pieces]) == 10
    assert b"".join(pieces) == b"0123456"
    assert received(link) == b"next"


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 0xFFFFFFFF])
def test_a_frame_longer_than_any_is_the_end(ends: Ends, length: int) -> None:
    link, peer = ends
    peer.sendall(framed(b"good") + struct.pack(">I", length))
    assert received(link) == b"good"
    with pytest.raises(NetLinkDown, match=str(length)):
        received(link)


def test_a_peer_that_hangs_up_is_told_when_all_its_frames_were_received(ends: Ends) -> None:
    link, peer = ends
    peer.sendall(framed(b"a", b"b") + b"\0\0")
    peer.close()
    assert received(link) == b"a"
    assert received(link) == b"b"
    with pytest.raises(NetLinkDown, match="hung up"):
        received(link)
    with pytest.raises(NetLinkDown):
        link.send([views(b"x")])


async def test_a_full_socket_takes_frames_whole_or_not_at_all(ends: Ends) -> None:
    """The rest of one that was cut goes before anything else."""
    link, peer = ends
    rng = random.Random(1)
    frames = [rng.randbytes(rng.randrange(1, 60_000)) for _ in range(200)]
    wanted = framed(*frames)
    got = bytearray()
    peer.setblocking(False)
    left = frames
    cut = 0
    while left or link.blocked:
        taken = link.send([views(frame) for frame in left[:64]])
        left = left[taken:]
        cut += link.blocked
        for _ in range(rng.randrange(4)):
            try:
                got += peer.recv(rng.randrange(1, 100_000))
            except BlockingIOError:
                break
        if link.blocked and not left:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.wait_writable)
                await trio.lowlevel.wait_readable(peer)
                got += peer.recv(1 << 20)
    while len(got) < len(wanted):
        got += peer.recv(1 << 20)
    assert got == wanted
    assert cut > 5


# --- the plugin ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("/a:b,c", {"path": "/a:b,c", "type": "stream"}),
        ("dgram:/a", {"path": "/a", "type": "dgram"}),
    ],
)
def test_the_path_stands_behind_the_colon(text: str, options: dict[str, str]) -> None:
    assert plugin.parse_cli(text) == options


@pytest.mark.parametrize("text", ["", "dgram:"])
def test_without_a_path_it_says_how_one_is_given(text: str) -> None:
    with pytest.raises(ConfigError, match="--net socket:PATH"):
        plugin.parse_cli(text)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": 3}, "path"),
        ({"path": "/a", "type": "seqpacket"}, "type"),
        ({"path": "/a", "mtu": 67}, "mtu"),
        ({"path": "/a", "mtu": True}, "mtu"),
        ({"path": "/a", "port": 1}, "port"),
    ],
)
def test_a_wrong_option_is_told(options: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create(options)
    assert [problem.where for problem in caught.value.problems] == [where]


async def test_a_stream_is_connected_for_the_machines_life(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        async with plugin.create({"path": path}).lifespan(1) as (link,):
            peer, _ = listener.accept()
            with peer:
                link.send([views(b"hello")])
                assert peer.recv(100) == framed(b"hello")
                peer.sendall(framed(b"you"))
                await link.wait_readable()
                assert received(link) == b"you"  # type: ignore[arg-type]


async def test_datagrams_are_frames_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    frame = ethernet(bytes(9000))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(os.fspath(path))
        async with plugin.create({"path": path, "type": "dgram"}).lifespan(1) as (link,):
            assert link.send([views(frame[:20], frame[20:]), views(b"two")]) == 2
            data, address = peer.recvfrom(20_000)
            assert (data, peer.recv(100)) == (frame, b"two")
            peer.sendto(frame, address)
            await link.wait_readable()
            buffers = [bytearray(5000), bytearray(5000)]
            assert link.receive([memoryview(buffer) for buffer in buffers]) == len(frame)
            assert b"".join(buffers)[: len(frame)] == frame
            assert link.receive([memoryview(buffers[0])]) is None
            assert Path(address).parent.stat().st_mode & 0o777 == 0o700
        assert not Path(address).parent.exists()


async def test_a_full_datagram_socket_blocks_and_one_that_is_gone_is_down(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(os.fspath(path))
        async with plugin.create({"path": path, "type": "dgram"}).lifespan(1) as (link,):
            taken = link.send([views(bytes(1000))] * 1000)
            assert 0 < taken < 1000
            peer.recv(2000)
            await link.wait_writable()
            peer.close()
            with pytest.raises(NetLinkDown):
                link.send([views(b"x")])


@pytest.mark.parametrize("kind", ["stream", "dgram"])
@pytest.mark.parametrize("name", ["nobody", "n" * 200])
async def test_a_socket_that_is_not_there_is_told_with_what_to_do(
    tmp_path: Path, kind: str, name: str
) -> None:
    with pytest.raises(ConfigError, match="Start the program"):
        async with plugin.create({"path": tmp_path / name, "type": kind}).lifespan(1):
            pytest.fail("it was there")
