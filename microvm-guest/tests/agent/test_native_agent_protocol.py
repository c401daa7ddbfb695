"""The real agent against hosts that break the protocol, all of them at once, and lost ones."""

import os
import socket
import struct
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.errors import GuestProtocolError
from microvm_guest.client import open_client
from microvm_guest.protocol import AgentConnection, ErrorCode, RunRequest
from microvm_guest.protocol.fields import FieldTag, RunFlag, encode_field
from microvm_guest.protocol.frames import (
    FROM_AGENT,
    HEADER,
    MAX_PAYLOAD,
    Frame,
    FrameReader,
    FrameType,
)

MAX_CONNECTIONS = 16


@asynccontextmanager
async def client_of(path):
    stream = await trio.open_unix_socket(path)
    async with open_client(stream) as client:
        yield client


class RawHost:
    """A host of raw bytes, with a plain socket."""

    def __init__(self, path, greets=True):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._reader = FrameReader(FROM_AGENT)
        if greets:
            self.send(AgentConnection().greet(0))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def send(self, raw):
        self._socket.sendall(raw)

    def hang_up_sending(self):
        self._socket.shutdown(socket.SHUT_WR)

    def receive(self):
        """The next frame, or None at the end."""
        while (frame := self._reader.next_frame()) is None:
            data = self._socket.recv(65536)
            if not data:
                return None
            self._reader.feed(data)
        return frame

    def receive_all(self):
        frames = []
        while (frame := self.receive()) is not None:
            frames.append(frame)
        return frames


def run_frame(argv, stream=1, flags=RunFlag.NO_STDIN, window=100_000):
    payload = RunRequest(argv=argv, flags=flags, window=window).encode(0)
    return Frame(FrameType.RUN, stream, payload).encode()


@pytest.fixture(scope="module")
def path(agent, tmp_path_factory):
    with agent.listening(tmp_path_factory.mktemp("sock")) as path:
        yield path


# --- broken rules --------------------------------------------------------------------------

RUN_OF_NOTHING = Frame(FrameType.RUN, 1, encode_field(FieldTag.CWD, "/")).encode()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(HEADER.pack(MAX_PAYLOAD + 1, FrameType.RUN, 0, 0, 1), id="too-long"),
        pytest.param(HEADER.pack(2**32 - 1, FrameType.STDIN, 0, 0, 1), id="absurdly-long"),
        pytest.param(HEADER.pack(0, 0xEE, 0, 0, 0), id="unknown-type"),
        pytest.param(HEADER.pack(0, FrameType.EXIT, 0, 0, 1), id="agents-type"),
        pytest.param(HEADER.pack(8, FrameType.PING, 1, 0, 0), id="flags"),
        pytest.param(HEADER.pack(8, FrameType.PING, 0, 7, 0), id="reserved"),
        pytest.param(HEADER.pack(8, FrameType.PING, 0, 0, 3), id="ping-on-a-stream"),
        pytest.param(HEADER.pack(8, FrameType.RUN, 0, 0, 0), id="run-on-no-stream"),
        pytest.param(AgentConnection().greet(0), id="second-hello"),
        pytest.param(Frame(FrameType.STDIN, 9, b"x").encode(), id="stream-never-opened"),
        pytest.param(RUN_OF_NOTHING, id="run-of-no-program"),
        pytest.param(Frame(FrameType.RUN, 1, b"\1\0\xff\xffabc").encode(), id="cut-field"),
        pytest.param(Frame(FrameType.RUN, 1, b"\1\0\2\0a\0").encode(), id="nul-in-argument"),
        pytest.param(
            Frame(FrameType.RUN, 1, b"\1\0\1\0a\2\0\1\0b").encode(), id="variable-without-value"
        ),
        pytest.param(run_frame(["true"], window=2**31), id="huge-window"),
        pytest.param(run_frame(["true"]) + run_frame(["true"]), id="stream-used-twice"),
        pytest.param(
            run_frame(["sleep", "9"]) + Frame(FrameType.KILL, 1, struct.pack("<I", 65)).encode(),
            id="no-such-signal",
        ),
        pytest.param(
            run_frame(["sleep", "9"])
            + Frame(FrameType.WINDOW, 1, struct.pack("<II", 0, 1)).encode(),
            id="window-of-stdin",
        ),
        pytest.param(
            run_frame(["sleep", "9"])
            + Frame(FrameType.WINDOW, 1, struct.pack("<II", 1, 2**32 - 1)).encode(),
            id="window-too-wide",
        ),
        pytest.param(
            run_frame(["sleep", "9"], flags=RunFlag(0))
            + Frame(FrameType.STDIN, 1, bytes(MAX_PAYLOAD)).encode() * 4,
            id="stdin-past-its-window",
        ),
        pytest.param(run_frame(["true"], flags=RunFlag.DETACH), id="job-with-stdin"),
        pytest.param(
            Frame(
                FrameType.RUN,
                1,
                encode_field(FieldTag.ARG, "true") + encode_field(FieldTag.LOG_BYTES, 2**31),
            ).encode(),
            id="log-of-any-size",
        ),
        pytest.param(Frame(FrameType.ATTACH, 1, b"\x0a\0\xff\xffabcd").encode(), id="cut-attach"),
        pytest.param(
            Frame(FrameType.ATTACH, 1, encode_field(FieldTag.WINDOW, 2**31)).encode(),
            id="attach-of-huge-window",
        ),
        pytest.param(
            Frame(FrameType.NOTICE, 0, struct.pack("<IQ", 1, 0)).encode() * 2,
            id="a-pause-within-a-pause",
        ),
        pytest.param(
            run_frame(["cat"], flags=RunFlag(0)) + Frame(FrameType.STDIN, 1, b"", 1).encode() * 2,
            id="stdin-after-its-end",
        ),
    ],
)
def test_a_host_that_breaks_the_protocol_is_told_so_and_hung_up_on(path, raw):
    with RawHost(path) as host:
        host.send(raw)
        last = host.receive_all()[-1]
        assert (last.type, last.stream) == (FrameType.ERROR, 0)
        assert struct.unpack_from("<I", last.payload) == (ErrorCode.PROTOCOL,)
        assert last.payload.endswith(b".")
    with RawHost(path) as host:
        assert host.receive().type is FrameType.HELLO


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", HEADER.pack(8, 2, 0, 0, 0) + bytes(8)]
)
def test_what_does_not_begin_with_a_hello_is_hung_up_on(path, first):
    with RawHost(path, greets=False) as host:
        host.send(first)
        assert [frame.type for frame in host.receive_all()] == [FrameType.HELLO, FrameType.ERROR]


def test_a_host_of_another_major_version_is_told(path):
    with RawHost(path, greets=False) as host:
        host.send(Frame(FrameType.HELLO, payload=b"mvmagent\x09\0\0\0").encode())
        assert b"major version" in host.receive_all()[-1].payload


def test_frames_may_come_byte_by_byte(path):
    with RawHost(path) as host:
        for byte in run_frame(["echo", "x"]):
            host.send(bytes([byte]))
        frames = [host.receive()]
        while frames[-1].type is not FrameType.EXIT:
            frames.append(host.receive())
        assert [frame.type for frame in frames[:2]] == [FrameType.HELLO, FrameType.STARTED]
        assert b"".join(f.payload for f in frames if f.type is FrameType.STDOUT) == b"x\n"


def test_frames_for_a_command_that_has_ended_are_passed_over(path):
    late = b"".join(
        Frame(kind, 1, payload).encode()
        for kind, payload in [
            (FrameType.STDIN, b"late"),
            (FrameType.WINDOW, struct.pack("<II", 1, 1)),
            (FrameType.KILL, struct.pack("<I", 15)),
            (FrameType.RESIZE, bytes(4)),
            (FrameType.CLOSE, b""),
        ]
    )
    with RawHost(path) as host:
        host.send(run_frame(["true"]))
        while host.receive().type is not FrameType.EXIT:
            pass
        host.send(late + Frame(FrameType.PING, payload=b"12345678").encode())
        assert host.receive().payload == b"12345678"


def test_half_a_frame_and_then_silence_harms_nobody(path):
    with RawHost(path) as slow, RawHost(path) as host:
        slow.send(run_frame(["true"])[:20])
        host.send(Frame(FrameType.PING, payload=bytes(8)).encode())
        assert [host.receive().type for _ in range(2)] == [FrameType.HELLO, FrameType.PONG]


def test_a_host_that_asks_and_never_reads_is_not_served_without_bound(path):
    """Its own socket fills up: what the agent holds of its answers is a fixed buffer."""
    with RawHost(path) as greedy, RawHost(path) as host:
        greedy._socket.setblocking(False)
        ping = Frame(FrameType.PING, payload=bytes(8)).encode() * 1000
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 64 * 1024 * 1024:
                sent += greedy._socket.send(ping)
        host.send(Frame(FrameType.PING, payload=bytes(8)).encode())
        assert [host.receive().type for _ in range(2)] == [FrameType.HELLO, FrameType.PONG]


def test_an_answer_that_had_to_wait_comes_when_the_host_reads(path):
    pings = 60_000
    with RawHost(path) as host:
        host._socket.setblocking(False)
        raw = b"".join(
            Frame(FrameType.PING, payload=struct.pack("<Q", n)).encode() for n in range(pings)
        )
        sent = 0
        try:
            while sent < len(raw):
                sent += host._socket.send(raw[sent : sent + 65536])
        except BlockingIOError:
            pass
        assert sent < len(raw), "the agent took it all without an answer being read"
        host._socket.settimeout(30)
        whole = sent // 20
        assert host.receive().type is FrameType.HELLO
        tokens = [struct.unpack("<Q", host.receive().payload)[0] for _ in range(whole)]
        assert tokens == list(range(whole))


# --- several hosts -------------------------------------------------------------------------


async def test_several_hosts_are_served_at_once_and_apart(path):
    async with client_of(path) as one, client_of(path) as other:
        async with one.spawn(["cat"]) as process:
            assert (await other.run(["echo", "x"])).stdout == b"x\n"
            await process.stdin.send_all(b"y")
            assert await process.stdout.receive_some() == b"y"
        assert (await other.status())["connections"] == 2


async def test_one_host_more_than_there_is_room_for_is_refused_as_busy(path):
    hosts = []
    try:
        for _ in range(MAX_CONNECTIONS):
            host = RawHost(path)
            hosts.append(host)
            host.send(Frame(FrameType.PING, payload=bytes(8)).encode())
            assert [host.receive().type for _ in range(2)] == [FrameType.HELLO, FrameType.PONG]
        stream = await trio.open_unix_socket(path)
        async with open_client(stream) as client:
            with pytest.raises(GuestProtocolError, match="as many connections as it can"):
                await client.wait_hello()
    finally:
        for host in hosts:
            host.__exit__()
    async with client_of(path) as client:
        await client.ping()


async def test_hosts_that_say_nothing_give_way_to_one_that_does(path):
    silent = [RawHost(path, greets=False) for _ in range(MAX_CONNECTIONS + 5)]
    async with client_of(path) as client:
        await client.ping()
    for host in silent:
        host.__exit__()


async def test_a_lost_host_takes_its_own_commands_and_no_others(path):
    async with client_of(path) as other, other.spawn(["cat"]) as process:
        with RawHost(path) as host:
            host.send(run_frame(["sh", "-c", "echo $$; exec sleep 1000"]))
            while (frame := host.receive()).type is not FrameType.STDOUT:
                pass
            pidfd = os.pidfd_open(int(frame.payload))
        await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)
        await process.stdin.send_all(b"still here")
        assert await process.stdout.receive_some() == b"still here"


async def test_a_command_that_is_to_stay_outlives_its_host(agent, tmp_path):
    with agent.listening(tmp_path) as path:
        await outlive(path, tmp_path)


async def outlive(path, tmp_path):
    proof = tmp_path / "proof"
    os.mkfifo(proof)
    with RawHost(path) as host:
        text = f"echo ready; read x <{proof}; echo $x >{proof}.out; rm {proof}"
        host.send(run_frame(["sh", "-c", text], flags=RunFlag.KEEP | RunFlag.NO_STDIN))
        while host.receive().type is not FrameType.STDOUT:
            pass
    async with client_of(path) as client:
        assert (await client.status())["commands"] == 1
        await client.run(["sh", "-c", f"echo alive >{proof}"])
        while (await client.status())["commands"] > 0:
            await client.ping()
    assert (tmp_path / "proof.out").read_text() == "alive\n"


# --- any bytes -----------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 9, 15, 64, 65, 100, 2**16, 2**24, 2**31, 2**32 - 1])
PROGRAMS = st.sampled_from(["true", "cat", "nope", "/", ""])


def fields(draw_tag, draw_value):
    return st.builds(lambda tag, raw: struct.pack("<HH", tag, len(raw)) + raw, draw_tag, draw_value)


runs = st.builds(
    lambda program, rest: encode_field(FieldTag.ARG, program) + b"".join(rest),
    PROGRAMS,
    st.lists(fields(st.integers(2, 11), st.binary(max_size=8)), max_size=6),
)
run_flags = st.builds(
    lambda flags: encode_field(FieldTag.RUN_FLAGS, flags), st.sampled_from([0, 8, 10, 18, 22, 31])
)
flagged_runs = st.builds(lambda flags, run: flags + run, run_flags, runs)
attachments = st.lists(
    fields(st.sampled_from([6, 10, 10, 11]), st.sampled_from([b"\1\0\0\0", b"\2\0\0\0", bytes(8)])),
    min_size=1,
    max_size=4,
).map(b"".join)
kinds = st.sampled_from(sorted(set(FrameType) - {FrameType.SHUTDOWN, FrameType.HELLO}))
fuzzed_frames = st.one_of(
    st.builds(
        lambda stream, raw: Frame(FrameType.RUN, stream, raw).encode(),
        st.integers(1, 9),
        flagged_runs,
    ),
    st.builds(
        lambda stream, raw, flags: Frame(FrameType.ATTACH, stream, raw, flags).encode(),
        st.integers(1, 9),
        attachments,
        st.sampled_from([0, 1]),
    ),
    st.builds(
        lambda notice: Frame(FrameType.NOTICE, 0, struct.pack("<IQ", notice, 0)).encode(), NUMBERS
    ),
    st.builds(
        lambda stream, raw: Frame(FrameType.RUN, stream, raw).encode(), st.integers(1, 9), runs
    ),
    st.builds(
        lambda kind, stream, raw, flags: Frame(kind, stream, raw, flags).encode(),
        kinds,
        st.integers(0, 9),
        st.one_of(
            st.binary(max_size=20),
            st.builds(lambda a, b: struct.pack("<II", a, b), NUMBERS, NUMBERS),
            st.builds(lambda a: struct.pack("<I", a), NUMBERS),
            st.just(bytes(8)),
        ),
        st.sampled_from([0, 0, 0, 1, 255]),
    ),
)


@given(st.lists(fuzzed_frames, max_size=25), st.booleans(), st.integers(1, 100_000))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_host_sends_the_agent_lives_and_serves_the_next(path, raws, cut, step):
    raw = b"".join(raws)
    if cut:
        raw = raw[:-1]
    with RawHost(path) as host:
        try:
            for start in range(0, len(raw), step):
                host.send(raw[start : start + step])
            host.hang_up_sending()
            host.receive_all()
        except (BrokenPipeError, ConnectionResetError):
            pass  # hung up on, before it had said everything
    with RawHost(path) as host:
        host.send(Frame(FrameType.PING, payload=bytes(8)).encode())
        assert [host.receive().type for _ in range(2)] == [FrameType.HELLO, FrameType.PONG]


@given(st.binary(max_size=300), st.booleans())
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_so_it_does_whatever_the_bytes_are(path, raw, greets):
    with RawHost(path, greets=greets) as host:
        try:
            host.send(raw)
            host.hang_up_sending()
            host.receive_all()
        except (BrokenPipeError, ConnectionResetError):
            pass
    with RawHost(path) as host:
        assert host.receive().type is FrameType.HELLO
