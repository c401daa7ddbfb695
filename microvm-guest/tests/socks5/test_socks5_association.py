"""A guest's datagrams, where names take their time, or the host can't reach what is asked for."""

import errno
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from microvm.outbound import OutboundPolicy
from microvm_guest.protocol.forwards import DATAGRAM
from microvm_guest.socks5.association import MAX_HELD, MAX_PENDING, Association
from microvm_guest.socks5.connector import MAX_LOOKUPS
from microvm_guest.socks5.wire import Destination, encode_datagram

LOOPBACK = OutboundPolicy(allow=("127.0.0.1",))
FEW_S = 30
REAL = socket.getaddrinfo


class Names:
    """The host's names: each an answer, an error, or what is called to get one."""

    def __init__(self) -> None:
        self.known: dict[str, str | OSError | Callable[[], str]] = {}
        self.asked: list[str] = []

    def getaddrinfo(self, host, port, **kinds):
        answer = self.known.get(host, host)
        if host in self.known:
            self.asked.append(host)
        if callable(answer):
            answer = answer()
        if isinstance(answer, OSError):
            raise answer
        return REAL(answer, port, **kinds)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    return found


@pytest.fixture
def peer() -> Iterator[trio.socket.SocketType]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield trio.socket.from_stdlib_socket(sock)


class Program:
    """One in the guest, that sends datagrams to one port of the host."""

    def __init__(self, stream: trio.StapledStream, port: int) -> None:
        self._stream = stream
        self._port = port
        self.written_to = 0
        """How often something was written to it."""

    async def send(self, host: str, data: bytes) -> None:
        raw = encode_datagram(Destination(host, self._port), data)
        await self._stream.send_all(DATAGRAM.pack(len(raw)) + raw)
        await trio.testing.wait_all_tasks_blocked()

    async def receive(self) -> bytes:
        return bytes(await self._stream.receive_some())


@asynccontextmanager
async def program(
    peer: trio.socket.SocketType, policy: OutboundPolicy = LOOPBACK
) -> AsyncIterator[Program]:
    near, far = trio.testing.memory_stream_pair()
    _control, asked_for = trio.testing.memory_stream_pair()
    association = Association(policy, far, trio.CapacityLimiter(MAX_LOOKUPS))
    with trio.fail_after(FEW_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(association.run, asked_for)
            asking = Program(near, peer.getsockname()[1])
            carry = far.send_stream.send_all_hook

            async def count() -> None:
                asking.written_to += 1
                await carry()

            far.send_stream.send_all_hook = count
            yield asking
            nursery.cancel_scope.cancel()


async def test_a_name_that_was_not_found_once_is_asked_for_again(names, peer, caplog):
    caplog.set_level(logging.INFO, "microvm.outbound")
    names.known["once.test"] = socket.gaierror(socket.EAI_AGAIN, "not now")
    async with program(peer) as sender:
        await sender.send("once.test", b"lost")
        while names.asked != ["once.test"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await sender.send("once.test", b"lost")
        while len(names.asked) < 2:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.1)
        names.known["once.test"] = "127.0.0.1"
        await sender.send("once.test", b"found")
        assert await peer.recv(99) == b"found"
        await sender.send("once.test", b"known")
        assert await peer.recv(99) == b"known"
    assert names.asked == ["once.test"] * 3
    assert caplog.text.count("not now") == 1


async def test_what_the_policy_refuses_is_judged_once(names, peer):
    names.known["denied.test"] = "127.0.0.2"
    async with program(peer) as sender:
        await sender.send("denied.test", b"no")
        while names.asked != ["denied.test"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.1)
        await sender.send("denied.test", b"no")
        await sender.send("127.0.0.1", b"yes")
        assert await peer.recv(99) == b"yes"
    assert names.asked == ["denied.test"]


@pytest.fixture
def slow(names: Names) -> Iterator[threading.Event]:
    """Names that are found when it is set."""
    go_on = threading.Event()

    def find() -> str:
        go_on.wait(FEW_S)
        return "127.0.0.1"

    for number in range(MAX_PENDING + 1):
        names.known[f"slow{number}.test"] = find
    yield go_on
    go_on.set()


async def test_a_name_that_takes_its_time_holds_up_only_what_is_for_it(slow, peer):
    async with program(peer) as sender:
        for data in (b"first", b"second"):
            await sender.send("slow0.test", data)
        await sender.send("127.0.0.1", b"other")
        assert await peer.recv(99) == b"other"
        slow.set()
        assert await peer.recv(99) == b"first"
        assert await peer.recv(99) == b"second"


async def test_what_waits_for_names_is_bounded(slow, names, peer):
    """Row 87. Addresses need no lookup, and are sent to whatever waits."""
    async with program(peer) as sender:
        for number in range(MAX_PENDING + 1):
            await sender.send(f"slow{number}.test", b"%d" % number)
        for _ in range(2 * MAX_HELD):
            await sender.send("slow0.test", b"more")
        await sender.send("127.0.0.1", b"other")
        assert await peer.recv(99) == b"other"
        slow.set()
        seen = [await peer.recv(99) for _ in range(MAX_HELD)]
        assert sorted(seen) == sorted(
            [b"%d" % number for number in range(MAX_PENDING)] + [b"more"] * (MAX_HELD - MAX_PENDING)
        )
        await sender.send("127.0.0.1", b"last")
        assert await peer.recv(99) == b"last"
    assert f"slow{MAX_PENDING}.test" not in names.asked


async def test_a_host_without_ipv6_drops_what_is_for_it_and_nothing_else(monkeypatch, peer):
    real = socket.socket

    class WithoutIpv6(real):  # type: ignore[misc,valid-type]
        def __init__(self, family=-1, *rest, **named):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *rest, **named)

    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    async with program(peer) as sender:
        await sender.send("2606:4700::1", b"lost")
        await sender.send("127.0.0.1", b"sent")
        assert await peer.recv(99) == b"sent"


async def test_a_first_datagram_that_can_not_be_sent_leaves_the_way_back_open(peer):
    """Answers to the next one come all the same."""
    async with program(peer) as sender:
        await sender.send("127.0.0.1", b"x" * 65515)  # more than IPv4 has room for: EMSGSIZE
        await sender.send("127.0.0.1", b"question")
        _, address = await peer.recvfrom(99)
        await peer.sendto(b"answer", address)
        assert (await sender.receive()).endswith(b"answer")


async def test_answers_that_have_come_together_go_to_the_guest_in_one_write(peer):
    """A tunnel's come by the hundred: so they cost one turn of the guest's stream."""
    async with program(peer) as sender:
        await sender.send("127.0.0.1", b"question")
        _, address = await peer.recvfrom(99)
        with socket.fromfd(peer.fileno(), socket.AF_INET, socket.SOCK_DGRAM) as now:
            for number in range(50):
                now.sendto(b"%02d" % number, address)
        await trio.testing.wait_all_tasks_blocked()
        assert sender.written_to == 1
        raw = await sender.receive()
        assert len(raw) == 50 * (DATAGRAM.size + 10 + 2)
        assert [raw[at - 2 : at] for at in range(14, len(raw) + 1, 14)] == [
            b"%02d" % number for number in range(50)
        ]
