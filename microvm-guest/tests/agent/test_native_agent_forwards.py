"""The real agent's forwards, as a host sees them and whatever a host sends.

Its forward port is an AF_UNIX socket here, and port N of the host's the socket at `<its path>_N`.
"""

import os
import resource
import socket
import stat
import struct
from contextlib import ExitStack, contextmanager

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.abc import GuestChannels
from microvm.errors import GuestError, GuestRefused
from microvm.forwards import TcpAddress, UnixAddress
from microvm_guest.forwarding import connect_to, listen_at
from microvm_guest.protocol.forwards import (
    MAX_FORWARDS,
    REPLY,
    REQUEST,
    encode_connect,
    encode_listen,
)

MIB = 1024 * 1024
EINVAL, EMFILE = 22, 24


class Beside(GuestChannels):
    """The channels to an agent that runs beside us."""

    def __init__(self, path):
        self.path = path

    async def connect(self, port):
        return await trio.open_unix_socket(self.path)

    def listen(self, port):
        sock = trio.socket.socket(socket.AF_UNIX)
        sock._sock.bind(f"{self.path}_{port}")
        sock.listen(64)
        return trio.SocketListener(sock)


@pytest.fixture(scope="module")
def path(agent, tmp_path_factory):
    with agent.listening(tmp_path_factory.mktemp("fwd"), "--forward-fd") as path:
        yield path


@pytest.fixture
def channels(path):
    return Beside(path)


@contextmanager
def service(address=("127.0.0.1", 0), family=socket.AF_INET):
    """A listening socket "of the guest's", and its address."""
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(1024)
        listener.settimeout(30)
        if family == socket.AF_UNIX:
            yield listener, UnixAddress(path=address)
        else:
            host, port = listener.getsockname()[:2]
            yield listener, TcpAddress(host=host, port=port)


def asked(path, raw):
    """A connection to the forward port that has said `raw`."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(path))
    if raw:  # who says nothing may be hung up on meanwhile
        sock.sendall(raw)
    return sock


def reply(sock):
    raw = b""
    while len(raw) < REPLY.size:
        data = sock.recv(REPLY.size - len(raw))
        if not data:
            return None
        raw += data
    return REPLY.unpack(raw)


@contextmanager
def joined(path, listener, address):
    """A host's stream and the accepted socket that it leads to."""
    with asked(path, encode_connect(address)) as host:
        there, _ = listener.accept()
        there.settimeout(30)
        with there:
            assert reply(host) == (0, 0)
            yield host, there


# --- into the guest --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "family"),
    [(("127.0.0.1", 0), socket.AF_INET), (("::1", 0), socket.AF_INET6), (None, socket.AF_UNIX)],
    ids=["tcp", "tcp6", "unix"],
)
def test_a_stream_leads_to_the_address_it_names(path, tmp_path, address, family):
    with (
        service(address or str(tmp_path / "s"), family) as (listener, named),
        joined(path, listener, named) as (host, there),
    ):
        host.sendall(b"to")
        assert there.recv(9) == b"to"
        there.sendall(b"fro")
        assert host.recv(9) == b"fro"


def test_what_follows_the_request_at_once_is_the_streams(path):
    with service() as (listener, address), asked(path, encode_connect(address) + b"early") as host:
        there, _ = listener.accept()
        with there:
            assert there.recv(9) == b"early"
            assert reply(host) == (0, 0)


def test_a_request_may_come_byte_by_byte(path):
    with service() as (listener, address), asked(path, b"") as host:
        for byte in encode_connect(address):
            host.sendall(bytes([byte]))
        listener.accept()[0].close()
        assert reply(host) == (0, 0)


def test_each_way_ends_by_itself(path):
    with service() as (listener, address), joined(path, listener, address) as (host, there):
        host.sendall(b"question")
        host.shutdown(socket.SHUT_WR)
        assert (there.recv(99), there.recv(99)) == (b"question", b"")
        there.sendall(b"answer")
        there.shutdown(socket.SHUT_WR)
        assert (host.recv(99), host.recv(99)) == (b"answer", b"")


def test_the_end_of_a_way_comes_after_all_of_its_bytes(path):
    """More than any buffer on the way holds, to a reader that begins late."""
    data = os.urandom(8 * MIB)
    with service() as (listener, address), joined(path, listener, address) as (host, there):
        pid = os.fork()
        if pid == 0:
            try:
                host.sendall(data)
                host.shutdown(socket.SHUT_WR)
            finally:
                os._exit(0)
        got = bytearray()
        while piece := there.recv(MIB):
            got += piece
        os.waitpid(pid, 0)
    assert bytes(got) == data


def test_a_reader_that_stops_holds_up_its_writer_and_nobody_else(path):
    with service() as (listener, address), joined(path, listener, address) as (host, _):
        host.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 256 * MIB:
                sent += host.send(bytes(65536))
        with joined(path, listener, address) as (other, there):
            other.sendall(b"through")
            assert there.recv(9) == b"through"


def test_a_stream_that_breaks_in_the_guest_ends_on_the_host(path):
    with service() as (listener, address), joined(path, listener, address) as (host, there):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.close()
        assert host.recv(9) == b""


def test_a_host_that_breaks_off_resets_the_guests_socket(path):
    """A part must not be taken for the whole."""
    with service() as (listener, address), joined(path, listener, address) as (host, there):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        there.sendall(b"unread")  # so that closing is an abort, also on AF_UNIX
        host.recv(1, socket.MSG_PEEK)
        host.close()
        with pytest.raises(ConnectionResetError):
            while there.recv(65536):
                pass


async def test_nobody_there_is_refused(channels, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(GuestRefused, match=f"can't connect to 127.0.0.1:{port}: Connection refuse"):
        await connect_to(channels, TcpAddress(port=port))
    with pytest.raises(GuestRefused, match="No such file"):
        await connect_to(channels, UnixAddress(path=str(tmp_path / "nothing")))


async def test_another_error_of_the_guests_is_told_as_it_is(channels):
    with pytest.raises(GuestError, match=r"can't connect to /etc/passwd/x: error 20"):
        await connect_to(channels, UnixAddress(path="/etc/passwd/x"))


# --- out of the guest ------------------------------------------------------------------------


async def test_a_listener_in_the_guest_leads_to_a_port_of_the_hosts(channels):
    async with channels.listen(7) as calls, listen_at(channels, TcpAddress(port=0), 7) as address:
        assert address.port > 0
        async with (
            await trio.open_tcp_stream(address.host, address.port) as program,
            await calls.accept() as host,
        ):
            await program.send_all(b"out")
            await program.send_eof()
            assert b"".join([chunk async for chunk in host]) == b"out"
            await host.send_all(b"in")
            assert await program.receive_some() == b"in"
    await until(lambda: not is_open(address))
    os.unlink(f"{channels.path}_7")


def is_open(address):
    with socket.socket() as sock:
        return sock.connect_ex((address.host, address.port)) == 0


async def until(condition):
    """The agent sees the end of a connection a moment after it."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - nothing of another process sets an Event
            await trio.sleep(0.01)


async def test_a_listener_at_a_path_is_for_every_user_and_goes_with_its_host(channels, tmp_path):
    where = tmp_path / "listener"
    async with channels.listen(8) as calls:
        async with listen_at(channels, UnixAddress(path=where), 8):
            assert stat.S_IMODE(where.stat().st_mode) == 0o666
            async with await trio.open_unix_socket(where), await calls.accept():
                pass
        await until(lambda: not where.exists())
    os.unlink(f"{channels.path}_8")


async def test_a_program_that_comes_when_no_host_listens_is_hung_up_on(channels):
    async with (
        listen_at(channels, TcpAddress(port=0), 9) as address,
        await trio.open_tcp_stream(address.host, address.port) as program,
    ):
        assert await program.receive_some() == b""


async def test_a_taken_port_is_told(channels):
    with (
        service() as (_, address),
        pytest.raises(GuestError, match=r"can't listen at .*: Address already in use"),
    ):
        async with listen_at(channels, address, 9):
            pass


def test_a_host_that_speaks_to_a_listener_ends_it(path):
    with asked(path, encode_listen(TcpAddress(port=0), 9)) as host:
        error, port = reply(host)
        assert (error, port > 0) == (0, True)
        host.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            host.recv(1)  # it was not even read
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


# --- bounds ----------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_1000_streams_work_at_once_and_those_beyond_the_bound_are_refused(agent, tmp_path):
    """Row 56's like: descriptors are bounded, and free again when the streams end."""
    with agent.listening(tmp_path, "--forward-fd") as path, service() as (listener, address):
        for _ in range(2):
            with ExitStack() as stack:
                pairs = [
                    stack.enter_context(joined(path, listener, address))
                    for _ in range(MAX_FORWARDS)
                ]
                for number, (host, _) in enumerate(pairs):
                    host.sendall(b"%d." % number)
                for number, (_, there) in enumerate(pairs):
                    assert there.recv(9) == b"%d." % number
                with asked(path, b"") as beyond:
                    assert reply(beyond) == (EMFILE, 0)
            # each end is seen by the agent before it takes whoever comes after
            with ExitStack() as stack:
                while True:
                    probe = stack.enter_context(asked(path, encode_connect(address)))
                    if reply(probe) == (0, 0):
                        break
                listener.accept()[0].close()


def test_an_agent_without_descriptors_rests_and_serves_again(plain_agent, tmp_path):
    """It does not spin, and what came meanwhile is served when there are some again."""
    with (
        plain_agent.process_limits(tmp_path, descriptors=24) as (path, pid),
        service() as (listener, address),
    ):
        held = [asked(path, b"") for _ in range(40)]
        before = cpu_ticks(pid)
        trio.run(trio.sleep, 0.6)
        assert cpu_ticks(pid) - before < 10
        late = asked(path, encode_connect(address))
        for sock in held:
            sock.close()
        assert reply(late) == (0, 0)
        listener.accept()[0].close()
        late.close()


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# --- any bytes -------------------------------------------------------------------------------

TEXT = b"127.0.0.1"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(REQUEST.pack(0, 1, 9, 1, 0, 0) + TEXT, id="no-request"),
        pytest.param(REQUEST.pack(4, 1, 9, 1, 0, 0) + TEXT, id="unknown-request"),
        pytest.param(REQUEST.pack(1, 0, 9, 1, 0, 0) + TEXT, id="no-family"),
        pytest.param(REQUEST.pack(1, 3, 9, 1, 0, 0) + TEXT, id="unknown-family"),
        pytest.param(REQUEST.pack(1, 1, 0, 1, 0, 0), id="no-address"),
        pytest.param(REQUEST.pack(1, 1, 108, 1, 0, 0), id="long-address"),
        pytest.param(REQUEST.pack(1, 2, 65535, 1, 0, 0), id="longest-address"),
        pytest.param(REQUEST.pack(1, 1, 9, 1, 7, 0) + TEXT, id="reserved"),
        pytest.param(REQUEST.pack(1, 1, 9, 1, 0, 7) + TEXT, id="connect-with-a-host-port"),
        pytest.param(REQUEST.pack(1, 1, 9, 1, 0, 0) + b"localhost", id="a-name"),
        pytest.param(REQUEST.pack(1, 1, 9, 1, 0, 0) + b"127.0.0.\0", id="nul"),
        pytest.param(REQUEST.pack(1, 2, 3, 0, 0, 0) + b"\0ab", id="abstract"),
    ],
)
def test_a_request_that_is_none_is_refused(path, raw):
    with asked(path, raw) as host:
        assert reply(host) == (EINVAL, 0)
        assert host.recv(1) == b""


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda head, text: REQUEST.pack(*head, len(text), 0, 0, 0) + text,
            st.tuples(st.integers(0, 3), st.integers(0, 3)),
            st.one_of(st.binary(max_size=120), st.just(b"127.0.0.1")),
        ),
    ),
    st.integers(1, 200),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_host_sends_the_agent_lives_and_forwards(path, tmp_path_factory, raw, step):
    raw = raw.replace(b"/", b"\0")  # no socket is to be made wherever it pleases
    with asked(path, b"") as host:
        try:
            for start in range(0, len(raw), step):
                host.sendall(raw[start : start + step])
            host.shutdown(socket.SHUT_WR)
            while host.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # hung up on, before it had said everything
    with service() as (listener, address), joined(path, listener, address):
        pass
