"""The host as a guest's proxy: what is carried out, what is refused, and what a guest can take.

Long, since one proxy is asked for all of it; UDP's own are in test_socks5_association.
"""

import errno
import ipaddress
import logging
import socket
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from microvm.abc import GuestChannels
from microvm.errors import GuestRefused
from microvm.outbound import OutboundPolicy
from microvm_guest.protocol.forwards import DATAGRAM, MAX_ADDRESS, REPLY, REQUEST
from microvm_guest.socks5.client_half import ClientHalf
from microvm_guest.socks5.connector import Place, is_own
from microvm_guest.socks5.negotiate import ThroughGuestFailed, request
from microvm_guest.socks5.outbound import OutboundProxy
from microvm_guest.socks5.wire import (
    Command,
    Destination,
    Reply,
    decode_datagram,
    encode_datagram,
)

LOOPBACK = OutboundPolicy(allow=("127.0.0.1", "::1"))
"""The tests' own servers are there."""


class NoChannels(GuestChannels):
    """A guest whose agent has gone."""

    async def connect(self, port):
        raise GuestRefused("nobody")

    def listen(self, port):
        raise NotImplementedError


class Datagrams(GuestChannels):
    """A guest whose agent takes datagrams: `guest` is the program's end, in frames."""

    def __init__(self):
        self.guest = None

    async def connect(self, port):
        ours, self.guest = trio.testing.memory_stream_pair()
        await ours.send_stream.send_all(b"")
        raw = REPLY.pack(0, 4321)
        await self.guest.send_all(raw)
        return ours

    def listen(self, port):
        raise NotImplementedError


@asynccontextmanager
async def proxy(policy=LOOPBACK, channels=None):
    """A function that dials the proxy as the guest does."""
    served = OutboundProxy(policy, channels or NoChannels())
    async with trio.open_nursery() as nursery:

        def dial():
            near, far = trio.testing.memory_stream_pair()

            async def serve():
                async with far:
                    await served.serve(far)

            nursery.start_soon(serve)
            return near

        yield dial
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def shouting(host="127.0.0.1"):
    """A TCP server that answers in capitals when all has been said, and its port."""
    listeners = await trio.open_tcp_listeners(0, host=host)

    async def shout(stream):
        async with stream:
            with suppress(trio.BrokenResourceError):  # a client that was cancelled is a reset
                await answer(stream)

    async def answer(stream):
        said = b"".join([chunk async for chunk in stream])
        await stream.send_all(said.upper())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def ask(stream, host, port, command=Command.CONNECT):
    destination = Destination(host, port)
    return await request(stream, ClientHalf(destination, command), destination)


async def refusal(dial, host, port, command=Command.CONNECT):
    with pytest.raises(ThroughGuestFailed) as caught:
        await ask(dial(), host, port, command)
    return caught.value.reply


# --- TCP -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433"])
async def test_a_stream_leads_out_with_each_way_its_own_end(host):
    async with shouting() as port, proxy() as dial:
        stream = dial()
        bound = await ask(stream, host, port)
        assert bound.host == "127.0.0.1"
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert b"".join([chunk async for chunk in stream]) == b"HELLO"


async def test_nobody_there_is_connection_refused():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with proxy() as dial:
        assert await refusal(dial, "127.0.0.1", port) is Reply.CONNECTION_REFUSED


@pytest.fixture
def ipv6_off(monkeypatch):
    """As by sysctl, and in most containers."""
    real = socket.socket

    class Ipv6Off(real):
        def connect(self, address):
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Ipv6Off)


async def test_without_ipv6_an_address_of_it_is_network_unreachable(ipv6_off):
    async with proxy() as dial:
        assert await refusal(dial, "::1", 80) is Reply.NETWORK_UNREACHABLE


@pytest.mark.parametrize("addresses", [["::1", "127.0.0.1"], ["127.0.0.1", "::1"]])
async def test_that_ipv6_is_off_says_less_than_a_refusal(ipv6_off, monkeypatch, addresses):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    resolves_to(monkeypatch, addresses)
    async with proxy() as dial:
        assert await refusal(dial, "both.example", port) is Reply.CONNECTION_REFUSED


async def test_a_name_that_there_is_not_is_host_unreachable():
    async with proxy() as dial:
        assert await refusal(dial, "no-such-host.invalid", 80) is Reply.HOST_UNREACHABLE


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "127.1",
        "0",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "LOCALHOST",
    ],
)
async def test_the_host_itself_is_not_reached_however_it_is_written(host):
    """Row 92. What listens here would have answered."""
    async with shouting("::") as port, shouting() as other, proxy(OutboundPolicy()) as dial:
        for where in (port, other):
            assert await refusal(dial, host, where) is Reply.NOT_ALLOWED


def resolves_to(monkeypatch, *answers):
    """Have names resolve to each of these in turn, then to the last; count the questions."""
    asked = []

    def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_that_resolves_to_the_host_itself_is_not_allowed(monkeypatch):
    """Row 92."""
    resolves_to(monkeypatch, ["127.0.0.1", "169.254.169.254", "::1"])
    policy = OutboundPolicy(allow=("*", "rebind.example"))
    async with proxy(policy) as dial:
        assert await refusal(dial, "rebind.example", 80) is Reply.NOT_ALLOWED


async def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(monkeypatch):
    """Row 92: a second answer, for the connection, could be another one."""
    async with shouting() as port:
        asked = resolves_to(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
        async with proxy() as dial:
            stream = dial()
            assert (await ask(stream, "rebind.example", port)).host == "127.0.0.1"
            await stream.aclose()
    assert asked == ["rebind.example"]


async def test_of_several_addresses_only_those_allowed_are_tried(monkeypatch):
    async with shouting() as port:
        resolves_to(monkeypatch, ["10.0.0.1", "::1", "169.254.169.254", "127.0.0.1"])
        async with proxy() as dial:
            stream = dial()
            assert (await ask(stream, "many.example", port)).host == "127.0.0.1"
            await stream.aclose()


async def test_a_name_that_is_denied_is_not_asked_for(monkeypatch):
    asked = resolves_to(monkeypatch, ["1.1.1.1"])
    async with proxy(OutboundPolicy(others="deny", allow=("good.example",))) as dial:
        assert await refusal(dial, "bad.example", 80) is Reply.NOT_ALLOWED
    assert asked == []


@pytest.mark.parametrize(
    "host", ["b\\097d.example", "bad.example%", "bad.example/", "b*d", "[::1]"]
)
async def test_a_name_that_no_host_has_is_not_asked_for(monkeypatch, host):
    r"""Row 92: resolvers read ``\097`` as the letter (RFC 4343, 2.1), and rules don't."""
    asked = resolves_to(monkeypatch, ["1.1.1.1"])
    async with proxy(OutboundPolicy(deny=("bad.example",))) as dial:
        assert await refusal(dial, host, 80) is Reply.HOST_UNREACHABLE
    assert asked == []


def test_this_hosts_own_addresses_are_known():
    assert is_own(Place(socket.AF_INET, ("127.0.0.1", 80), ""))
    assert not is_own(Place(socket.AF_INET, ("192.0.2.77", 80), ""))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.77", 9))
        mine = probe.getsockname()[0]
    assert is_own(Place(socket.AF_INET, (mine, 80), ""))


async def test_this_host_is_not_reached_by_its_address_in_a_network_that_is_open():
    """Row 92."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no address but the loopback's")
        own = probe.getsockname()[0]
    network = str(ipaddress.ip_network(f"{own}/24", strict=False))
    async with shouting("0.0.0.0") as port:
        async with proxy(OutboundPolicy(allow=(network,))) as dial:
            assert await refusal(dial, own, port) is Reply.NOT_ALLOWED
        async with proxy(OutboundPolicy(allow=(own,))) as dial:
            await ask(dial(), own, port)


async def test_each_request_leaves_a_line_in_the_log(caplog):
    caplog.set_level(logging.INFO, "microvm.outbound")
    async with shouting() as port, proxy() as dial:
        stream = dial()
        await ask(stream, "localhost", port)
        await stream.aclose()
        await refusal(dial, "127.0.0.2", port)
    lines = [record.getMessage() for record in caplog.records]
    assert f"connect localhost:{port} at 127.0.0.1:{port}, allowed: 127.0.0.1/32" in lines
    assert f"connect 127.0.0.2:{port} refused: 127.0.0.2 not public: loopback" in lines


# --- what a guest can take -------------------------------------------------------------------


async def test_who_says_nothing_or_says_it_slowly_is_hung_up_on():
    """Row 91: a slow handshake."""
    async with proxy(OutboundPolicy(handshake_within_s=0.3)) as dial:
        silent, slow = dial(), dial()
        with trio.fail_after(30):
            assert await silent.receive_some() == b""
            with pytest.raises(trio.BrokenResourceError):
                for byte in b"\x05\xff" + bytes(range(1, 255)):
                    await slow.send_all(bytes((byte,)))
                    await trio.sleep(0.01)


async def test_2000_half_open_make_way_for_one_who_speaks():
    """Row 91."""
    policy = OutboundPolicy(allow=("127.0.0.1",), handshake_within_s=600)
    hung_up = 0

    async def wait_end(stream):
        nonlocal hung_up
        assert await stream.receive_some() == b""
        hung_up += 1

    async with shouting() as port, proxy(policy) as dial, trio.open_nursery() as nursery:
        for _ in range(2000):
            nursery.start_soon(wait_end, dial())
        await trio.testing.wait_all_tasks_blocked()
        assert hung_up == 2000 - policy.max_handshakes
        await ask(dial(), "127.0.0.1", port)
        nursery.cancel_scope.cancel()


async def test_connections_beyond_the_bound_are_refused_until_one_ends():
    policy = OutboundPolicy(allow=("127.0.0.1",), max_connections=2)
    async with shouting() as port, proxy(policy) as dial:
        streams = [dial(), dial()]
        for stream in streams:
            await ask(stream, "127.0.0.1", port)
        assert await refusal(dial, "127.0.0.1", port) is Reply.GENERAL_FAILURE
        await streams[0].send_eof()
        assert await streams[0].receive_some() == b""
        await trio.testing.wait_all_tasks_blocked(0.05)
        await ask(dial(), "127.0.0.1", port)


async def test_who_hangs_up_before_the_answer_leaves_no_connection_behind():
    """Row 91: each would be one of the host's descriptors."""
    connections = []
    ours, guests = trio.testing.memory_stream_pair()

    async def keep(stream):
        connections.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, keep, 0)
        port = listeners[0].socket.getsockname()[1]
        half = ClientHalf(Destination("127.0.0.1", port), eager=True)
        nursery.start_soon(OutboundProxy(LOOPBACK, NoChannels()).serve, ours)
        await guests.send_all(half.outgoing())
        assert await guests.receive_some(2) == b"\x05\x00"
        await guests.aclose()
        with trio.fail_after(5):
            while connections != [b""]:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_a_server_that_does_not_answer_is_given_up_after_a_while():
    """Who listens and accepts nobody lets further connections wait."""
    policy = OutboundPolicy(allow=("127.0.0.1",), connect_within_s=0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        async with proxy(policy) as dial:
            assert await refusal(dial, "127.0.0.1", port) is Reply.HOST_UNREACHABLE
        for sock in waiting:
            sock.close()


@pytest.mark.parametrize("raw", [b"\x04\x01", b"GET /", b"\x05\x01\x02", b"\x05\x00"])
async def test_what_is_no_client_is_hung_up_on(raw):
    """Row 91."""
    async with proxy() as dial:
        stream = dial()
        await stream.send_all(raw)
        said = b"".join([chunk async for chunk in stream])
        assert said in (b"", b"\x05\xff")


# --- UDP -------------------------------------------------------------------------------------


async def send(channels, destination, data):
    raw = encode_datagram(destination, data)
    await channels.guest.send_all(DATAGRAM.pack(len(raw)) + raw)


async def receive(channels):
    waiting = b""
    while len(waiting) < DATAGRAM.size or len(waiting) < 2 + DATAGRAM.unpack_from(waiting)[0]:
        data = await channels.guest.receive_some(1)
        assert data
        waiting += data
    return decode_datagram(waiting[2:])


def asked_of_agent(raw):
    request_, family, length, port, zero, host_port = REQUEST.unpack(raw[: REQUEST.size])
    assert length <= MAX_ADDRESS
    return request_, family, raw[REQUEST.size :], port, zero, host_port


@asynccontextmanager
async def association(policy=LOOPBACK):
    channels = Datagrams()
    async with proxy(policy, channels) as dial:
        control = dial()
        bound = await ask(control, "0.0.0.0", 0, Command.UDP_ASSOCIATE)
        assert bound == Destination("127.0.0.1", 4321)
        raw = await channels.guest.receive_some()
        assert asked_of_agent(raw) == (3, 1, b"127.0.0.1", 0, 0, 0)
        yield channels, control


@pytest.fixture
def peer():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)
        yield sock, sock.getsockname()[1]


async def test_datagrams_go_out_and_answers_come_back(peer):
    sock, port = peer
    with trio.fail_after(10):
        async with association() as (channels, _):
            await send(channels, Destination("localhost", port), b"question")
            data, address = await trio.to_thread.run_sync(sock.recvfrom, 99)
            assert data == b"question"
            sock.sendto(b"answer", address)
            assert await receive(channels) == (Destination("127.0.0.1", port), b"answer")


async def test_a_datagram_from_somebody_who_was_not_sent_to_is_dropped(peer):
    sock, port = peer
    with trio.fail_after(10), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        async with association() as (channels, _):
            await send(channels, Destination("127.0.0.1", port), b"x")
            _, address = await trio.to_thread.run_sync(sock.recvfrom, 99)
            stranger.sendto(b"stranger", ("127.0.0.1", address[1]))
            sock.sendto(b"friend", address)
            assert await receive(channels) == (Destination("127.0.0.1", port), b"friend")


async def test_a_datagram_to_what_is_not_allowed_is_dropped_and_the_others_go_on(peer, caplog):
    """Row 92, for UDP."""
    caplog.set_level(logging.INFO, "microvm.outbound")
    sock, port = peer
    with trio.fail_after(10):
        async with association() as (channels, _):
            for host in ("127.0.0.2", "169.254.169.254", "no-such-host.invalid"):
                await send(channels, Destination(host, port), b"secret")
            await channels.guest.send_all(DATAGRAM.pack(3) + b"???")
            await channels.guest.send_all(DATAGRAM.pack(0))
            await send(channels, Destination("127.0.0.1", port), b"allowed")
            data, _ = await trio.to_thread.run_sync(sock.recvfrom, 99)
            assert data == b"allowed"
    assert "datagrams to 169.254.169.254" in caplog.text


async def test_an_association_ends_with_the_connection_that_asked_for_it():
    with trio.fail_after(10):
        async with association() as (channels, control):
            await control.send_eof()
            assert await channels.guest.receive_some() == b""


async def test_associations_are_bounded_and_may_be_forbidden():
    policy = OutboundPolicy(allow=("127.0.0.1",), max_udp=1)
    async with proxy(policy, Datagrams()) as dial:
        await ask(dial(), "0.0.0.0", 0, Command.UDP_ASSOCIATE)
        reply = await refusal(dial, "0.0.0.0", 0, Command.UDP_ASSOCIATE)
        assert reply is Reply.GENERAL_FAILURE
    async with proxy(OutboundPolicy(udp=False), Datagrams()) as dial:
        reply = await refusal(dial, "0.0.0.0", 0, Command.UDP_ASSOCIATE)
        assert reply is Reply.COMMAND_NOT_SUPPORTED


async def test_an_agent_that_has_gone_is_told_as_a_failure():
    async with proxy() as dial:
        reply = await refusal(dial, "0.0.0.0", 0, Command.UDP_ASSOCIATE)
        assert reply is Reply.GENERAL_FAILURE
