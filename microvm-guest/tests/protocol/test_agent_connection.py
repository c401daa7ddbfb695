"""`AgentConnection`: what it makes of right bytes, and what of wrong ones.

Long, since each message has its right form and its wrong ones here.
"""

import struct

import pytest

from microvm.errors import ConfigError, GuestProtocolError
from microvm_guest.protocol import NEED_DATA, AgentConnection, LocalProtocolError, RunRequest
from microvm_guest.protocol import events as e
from microvm_guest.protocol.fields import FieldTag, RunFlag, decode_fields, encode_field
from microvm_guest.protocol.frames import (
    FROM_HOST,
    MAGIC,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameFlag,
    FrameReader,
    FrameType,
)
from microvm_guest.testing import STDIN_WINDOW, hello_payload

HELLO = Frame(FrameType.HELLO, payload=hello_payload())
EOF = FrameFlag.EOF


def two(first, second):
    return struct.pack("<II", first, second)


def events_of(connection, *frames):
    connection.receive_data(b"".join(frame.encode() for frame in frames))
    events = []
    while (event := connection.next_event()) is not NEED_DATA:
        events.append(event)
    return events


def sent(raw):
    """What the host sent, held to the table of what a host may send."""
    reader = FrameReader(FROM_HOST)
    reader.feed(raw)
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    assert reader.buffered == 0
    return frames


@pytest.fixture
def connection():
    connection = AgentConnection()
    connection.greet(0)
    events_of(connection, HELLO)
    return connection


def start(connection, *, started=True, **options):
    request = RunRequest(argv=["cat"], **options)
    stream, _ = connection.run(request, 0)
    if started:
        events_of(connection, Frame(FrameType.STARTED, stream, struct.pack("<I", 42)))
    return stream


def violates(connection, *frames, match):
    with pytest.raises(GuestProtocolError, match=match):
        events_of(connection, *frames)
    with pytest.raises(GuestProtocolError, match=match):
        connection.next_event()


class TestGreeting:
    def test_the_hosts_hello_is_its_first_frame_and_carries_the_wall_time(self):
        (frame,) = sent(AgentConnection().greet(1_700_000_000_000_000_000))
        assert frame.type is FrameType.HELLO
        assert frame.payload.startswith(MAGIC)
        ((tag, raw),) = decode_fields(frame.payload[len(MAGIC) + 4 :])
        assert (tag, int.from_bytes(raw, "little")) == (
            FieldTag.WALL_TIME,
            1_700_000_000_000_000_000,
        )

    def test_nothing_is_sent_before_the_hello_and_it_is_sent_once(self):
        connection = AgentConnection()
        with pytest.raises(LocalProtocolError):
            connection.ping()
        connection.greet(0)
        with pytest.raises(LocalProtocolError):
            connection.greet(0)

    def test_the_agents_hello_says_who_it_is(self):
        connection = AgentConnection()
        (hello,) = events_of(connection, HELLO)
        assert isinstance(hello, e.HelloReceived)
        assert (hello.build, hello.kernel) == ("fake", "6.1.0-fake")
        assert hello.stdin_window == STDIN_WINDOW
        assert connection.hello == hello

    def test_control_characters_of_the_guest_are_shown_as_escapes(self):
        payload = hello_payload() + encode_field(FieldTag.KERNEL, "\x1b[2J\n\xff")
        (hello,) = events_of(AgentConnection(), Frame(FrameType.HELLO, payload=payload))
        assert hello.kernel == "\\x1b[2J\\nÿ"

    def test_another_major_version_is_refused_with_what_to_do(self):
        connection = AgentConnection()
        frame = Frame(FrameType.HELLO, payload=hello_payload(major=2))
        with pytest.raises(GuestProtocolError, match="version 2") as caught:
            events_of(connection, frame)
        assert "microvm image build" in caught.value.remedy

    def test_what_does_not_begin_with_the_magic_is_no_agent(self):
        wrong = Frame(FrameType.HELLO, payload=b"x" * 12)
        violates(AgentConnection(), wrong, match="something else than an agent's HELLO")

    @pytest.mark.parametrize("window", [0, 2**32 - 1])
    def test_a_stdin_window_out_of_bounds_is_refused(self, window):
        wrong = Frame(FrameType.HELLO, payload=hello_payload(stdin_window=window))
        violates(AgentConnection(), wrong, match="stdin window")

    def test_no_frame_but_an_error_comes_before_the_hello(self):
        connection = AgentConnection()
        connection.greet(0)
        _, _ = connection.ping()
        violates(connection, Frame(FrameType.PONG, payload=bytes(8)), match="HELLO comes first")

    def test_a_command_asked_for_before_the_hello_is_answered_only_after_it(self):
        connection = AgentConnection()
        connection.greet(0)
        stream, _ = connection.run(RunRequest(argv=["x"]), 0)
        violates(connection, Frame(FrameType.STARTED, stream, bytes(4)), match="STARTED")

    def test_a_second_hello_is_a_violation(self, connection):
        violates(connection, HELLO, match="HELLO comes first and once")

    def test_an_error_of_the_connection_is_its_last_event(self):
        connection = AgentConnection()
        refusal = Frame(FrameType.ERROR, payload=struct.pack("<I", 2) + b"full")
        events = events_of(connection, refusal, HELLO)
        assert events == [e.ConnectionRefused(error=2, text="full")]


class TestRequests:
    def test_a_pong_answers_its_ping_once(self, connection):
        token, raw = connection.ping()
        (frame,) = sent(raw)
        pong = Frame(FrameType.PONG, payload=frame.payload)
        assert events_of(connection, pong) == [e.PongReceived(token=token)]
        violates(connection, pong, match="PONG")

    def test_a_status_is_answered_with_what_is_known_of_it(self, connection):
        assert [f.type for f in sent(connection.ask_status())] == [FrameType.STATUS]
        fields = encode_field(FieldTag.UPTIME_MS, 5) + struct.pack("<HH", 500, 1) + b"?"
        answer = Frame(FrameType.STATUS, payload=fields)
        assert events_of(connection, answer) == [e.StatusReceived(status={"uptime_ms": 5})]
        violates(connection, answer, match="nobody had asked")

    def test_a_status_that_ends_inside_a_field_is_a_violation(self, connection):
        connection.ask_status()
        violates(connection, Frame(FrameType.STATUS, payload=b"\x20\0\x08"), match="inside")

    def test_a_shutdown_is_agreed_to_only_when_asked_for(self, connection):
        violates(connection, Frame(FrameType.SHUTDOWN), match="nobody had asked")

    def test_a_shutdown_says_whether_to_cut_the_power(self, connection):
        (reset,) = sent(connection.shutdown())
        (off,) = sent(connection.shutdown(power_off=True))
        assert (reset.flags, off.flags) == (0, FrameFlag.POWER_OFF)
        assert events_of(connection, Frame(FrameType.SHUTDOWN)) == [e.ShutdownAgreed()]

    def test_the_clock_is_set_in_nanoseconds(self, connection):
        (frame,) = sent(connection.set_clock(12))
        assert (frame.type, frame.payload) == (FrameType.SET_CLOCK, struct.pack("<Q", 12))


class TestRun:
    def test_a_run_carries_the_whole_request(self, connection):
        request = RunRequest(
            argv=["a", "b"],
            env=(("K", "v=w"),),
            cwd="/c",
            user="u",
            tty=(24, 80),
            window=5,
            flags=RunFlag.MERGE,
        )
        stream, raw = connection.run(request, 9)
        (frame,) = sent(raw)
        assert (frame.type, frame.stream) == (FrameType.RUN, stream)
        assert list(decode_fields(frame.payload)) == [
            (FieldTag.ARG, b"a"),
            (FieldTag.ARG, b"b"),
            (FieldTag.ENV, b"K=v=w"),
            (FieldTag.CWD, b"/c"),
            (FieldTag.USER, b"u"),
            (FieldTag.TTY, b"\x18\0\x50\0"),
            (FieldTag.WINDOW, struct.pack("<I", 5)),
            (FieldTag.RUN_FLAGS, struct.pack("<I", RunFlag.MERGE)),
            (FieldTag.WALL_TIME, struct.pack("<Q", 9)),
        ]

    def test_stream_ids_rise_and_are_not_used_again(self, connection):
        streams = [start(connection) for _ in range(3)]
        assert streams == [1, 2, 3]

    @pytest.mark.parametrize(
        ("wrong", "match"),
        [
            ({"argv": []}, "needs a program"),
            ({"argv": [""]}, "needs a program"),
            ({"argv": "ls -l"}, "list of words"),
            ({"argv": ["a\0b"]}, "NUL"),
            ({"argv": ["a"], "env": (("A", "\0"),)}, "NUL"),
            ({"argv": ["a"], "env": (("A=B", "c"),)}, "name"),
            ({"argv": ["a"], "env": (("", "c"),)}, "name"),
            ({"argv": ["a"], "cwd": ""}, "empty"),
            ({"argv": ["a"], "user": "x\0"}, "NUL"),
            ({"argv": ["a"], "tty": (-1, 80)}, "rows"),
            ({"argv": ["a", "x" * MAX_PAYLOAD]}, "has room"),
        ],
    )
    def test_a_request_that_a_guest_cannot_be_told_is_the_callers_error(self, wrong, match):
        with pytest.raises(ConfigError, match=match):
            RunRequest(**wrong)

    def test_the_largest_request_fits_a_frame(self, connection):
        request = RunRequest(argv=["a", "x" * (MAX_PAYLOAD - 200)], tty=(1, 1))
        assert len(sent(connection.run(request, 0)[1])) == 1

    def test_a_command_that_could_not_start_has_its_reason_as_its_last_event(self, connection):
        stream = start(connection, started=False)
        refusal = Frame(FrameType.ERROR, stream, struct.pack("<I", 4) + b"no\x07")
        assert events_of(connection, refusal) == [
            e.CommandRefused(stream=stream, error=4, text="no\\x07")
        ]
        violates(connection, refusal, match="ERROR")


class TestOutput:
    def test_output_and_ends_and_exit_in_order(self, connection):
        stream = start(connection)
        events = events_of(
            connection,
            Frame(FrameType.STDOUT, stream, b"out"),
            Frame(FrameType.STDERR, stream, b"err", EOF),
            Frame(FrameType.STDOUT, stream, b"", EOF),
            Frame(FrameType.EXIT, stream, two(7, 0)),
        )
        assert [type(event) for event in events] == [e.OutputReceived] * 3 + [e.CommandExited]
        assert events[1].channel is Channel.STDERR
        assert events[1].eof
        assert events[3] == e.CommandExited(stream=stream, exit_code=7, signal=None)

    def test_the_window_bounds_what_may_come_until_more_is_granted(self, connection):
        stream = start(connection, window=10)
        events_of(connection, Frame(FrameType.STDOUT, stream, bytes(10)))
        (grant,) = sent(connection.grant(stream, Channel.STDOUT, 4))
        assert grant.payload == two(Channel.STDOUT, 4)
        events_of(connection, Frame(FrameType.STDOUT, stream, bytes(4)))
        violates(connection, Frame(FrameType.STDOUT, stream, b"!"), match="more STDOUT")

    def test_each_output_has_a_window_of_its_own(self, connection):
        stream = start(connection, window=3)
        events_of(connection, Frame(FrameType.STDOUT, stream, b"123"))
        events_of(connection, Frame(FrameType.STDERR, stream, b"123"))
        violates(connection, Frame(FrameType.STDERR, stream, b"4"), match="more STDERR")

    def test_nothing_comes_after_the_end_of_an_output(self, connection):
        stream = start(connection)
        events_of(connection, Frame(FrameType.STDOUT, stream, b"", EOF))
        violates(connection, Frame(FrameType.STDOUT, stream, b"x"), match="after its end")

    def test_a_frame_of_no_bytes_is_only_for_the_end(self, connection):
        stream = start(connection)
        violates(connection, Frame(FrameType.STDOUT, stream), match="no bytes")

    @pytest.mark.parametrize("option", [{"tty": (1, 1)}, {"flags": RunFlag.MERGE}])
    def test_a_command_with_one_output_has_no_stderr(self, connection, option):
        stream = start(connection, **option)
        violates(connection, Frame(FrameType.STDERR, stream, b"x"), match="STDERR")

    def test_no_grant_goes_out_for_an_output_that_has_ended(self, connection):
        stream = start(connection)
        events_of(connection, Frame(FrameType.STDOUT, stream, b"x", EOF))
        assert connection.grant(stream, Channel.STDOUT, 1) == b""

    def test_output_before_started_is_a_violation(self, connection):
        stream = start(connection, started=False)
        violates(connection, Frame(FrameType.STDOUT, stream, b"x"), match="requested")

    def test_started_comes_once(self, connection):
        stream = start(connection)
        violates(connection, Frame(FrameType.STARTED, stream, bytes(4)), match="running")

    @pytest.mark.parametrize("stream", [9, 0xFFFF_FFFF])
    def test_output_of_a_command_nobody_asked_for_is_a_violation(self, connection, stream):
        violates(connection, Frame(FrameType.STDOUT, stream, b"x"), match=f"stream {stream}")


class TestExit:
    def end(self, connection, stream, code, signal):
        return events_of(
            connection,
            Frame(FrameType.STDOUT, stream, b"", EOF),
            Frame(FrameType.STDERR, stream, b"", EOF),
            Frame(FrameType.EXIT, stream, two(code, signal)),
        )[-1]

    @pytest.mark.parametrize("code", [0, 1, 255])
    def test_an_exit_code(self, connection, code):
        stream = start(connection)
        event = self.end(connection, stream, code, 0)
        assert (event.exit_code, event.signal) == (code, None)

    @pytest.mark.parametrize("signal", [1, 9, 64])
    def test_a_signal(self, connection, signal):
        stream = start(connection)
        event = self.end(connection, stream, 0, signal)
        assert (event.exit_code, event.signal) == (None, signal)

    @pytest.mark.parametrize(
        ("code", "signal"), [(256, 0), (2**31, 0), (2**32 - 1, 0), (0, 65), (0, 2**31), (1, 9)]
    )
    def test_an_end_that_no_process_can_have_is_a_violation(self, connection, code, signal):
        stream = start(connection)
        with pytest.raises(GuestProtocolError, match="EXIT"):
            self.end(connection, stream, code, signal)

    def test_exit_comes_after_the_end_of_both_outputs(self, connection):
        stream = start(connection)
        events_of(connection, Frame(FrameType.STDOUT, stream, b"", EOF))
        violates(connection, Frame(FrameType.EXIT, stream, two(0, 0)), match="before the end")

    def test_a_second_exit_is_a_violation(self, connection):
        stream = start(connection)
        self.end(connection, stream, 0, 0)
        violates(connection, Frame(FrameType.EXIT, stream, two(0, 0)), match="EXIT")

    def test_calls_for_a_command_that_has_ended_send_nothing(self, connection):
        stream = start(connection)
        self.end(connection, stream, 0, 0)
        assert connection.kill(stream, 15) == b""
        assert connection.resize(stream, 1, 1) == b""
        assert connection.close(stream) == b""
        assert connection.stdin(stream, b"late", eof=True) == b""
        assert connection.grant(stream, Channel.STDOUT, 1) == b""
        assert connection.stdin_credit(stream) == 0


class TestStdin:
    def test_stdin_is_cut_into_frames_and_ends_with_the_last(self, connection):
        big = AgentConnection()
        big.greet(0)
        events_of(big, Frame(FrameType.HELLO, payload=hello_payload(stdin_window=200_000)))
        stream = start(big)
        frames = sent(big.stdin(stream, bytes(150_000), eof=True))
        assert [len(frame.payload) for frame in frames] == [65536, 65536, 18928]
        assert [frame.flags for frame in frames] == [0, 0, EOF]

    def test_the_end_alone_is_an_empty_frame(self, connection):
        stream = start(connection)
        (frame,) = sent(connection.stdin(stream, b"", eof=True))
        assert (frame.payload, frame.flags) == (b"", EOF)

    def test_credit_is_what_the_agent_has_room_for(self, connection):
        stream = start(connection)
        connection.stdin(stream, bytes(STDIN_WINDOW - 1))
        assert connection.stdin_credit(stream) == 1
        with pytest.raises(LocalProtocolError):
            connection.stdin(stream, b"two")
        window = Frame(FrameType.WINDOW, stream, two(Channel.STDIN, 100))
        assert events_of(connection, window) == [e.StdinReady(stream=stream, closed=False)]
        assert connection.stdin_credit(stream) == 101

    def test_there_is_no_credit_before_the_agents_hello(self):
        connection = AgentConnection()
        connection.greet(0)
        stream, _ = connection.run(RunRequest(argv=["cat"]), 0)
        assert connection.stdin_credit(stream) == 0
        events_of(connection, HELLO)
        assert connection.stdin_credit(stream) == STDIN_WINDOW

    def test_a_window_for_more_than_was_sent_is_a_violation(self, connection):
        stream = start(connection)
        connection.stdin(stream, b"ab")
        window = Frame(FrameType.WINDOW, stream, two(Channel.STDIN, 3))
        violates(connection, window, match="never sent")

    def test_a_window_for_an_output_is_a_violation(self, connection):
        stream = start(connection)
        window = Frame(FrameType.WINDOW, stream, two(Channel.STDOUT, 0))
        violates(connection, window, match="for an output")

    def test_a_command_that_has_closed_its_stdin_is_sent_no_more(self, connection):
        stream = start(connection)
        closed = Frame(FrameType.WINDOW, stream, two(0, 0), FrameFlag.CLOSED)
        assert events_of(connection, closed) == [e.StdinReady(stream=stream, closed=True)]
        assert connection.stdin_credit(stream) == 0
        assert connection.stdin(stream, b"x", eof=True) == b""

    def test_a_command_without_stdin_has_no_credit(self, connection):
        stream = start(connection, flags=RunFlag.NO_STDIN)
        assert connection.stdin_credit(stream) == 0


class TestLettingGo:
    def test_what_was_under_way_may_still_come_and_the_end_needs_no_eofs(self, connection):
        stream = start(connection)
        assert [f.type for f in sent(connection.close(stream))] == [FrameType.CLOSE]
        events = events_of(
            connection,
            Frame(FrameType.STDOUT, stream, b"late"),
            Frame(FrameType.EXIT, stream, two(0, 9)),
        )
        assert events[-1] == e.CommandExited(stream=stream, exit_code=None, signal=9)

    def test_the_window_still_holds(self, connection):
        stream = start(connection, window=2)
        connection.close(stream)
        violates(connection, Frame(FrameType.STDOUT, stream, b"abc"), match="window")

    @pytest.mark.parametrize("kind", [FrameType.ERROR, FrameType.EXIT])
    def test_before_the_start_either_end_may_come(self, connection, kind):
        stream = start(connection, started=False)
        connection.close(stream)
        payload = two(0, 9) if kind is FrameType.EXIT else struct.pack("<I", 4)
        assert len(events_of(connection, Frame(kind, stream, payload))) == 1

    def test_nothing_more_is_sent_for_it(self, connection):
        stream = start(connection)
        connection.close(stream)
        assert connection.close(stream) == b""
        assert connection.kill(stream, 9) == b""
        assert connection.stdin(stream, b"x") == b""
        assert connection.grant(stream, Channel.STDOUT, 1) == b""


@pytest.mark.parametrize("signal", [0, -1, 65, 2**31])
def test_a_signal_that_does_not_exist_is_the_callers_error(connection, signal):
    stream = start(connection)
    with pytest.raises(LocalProtocolError):
        connection.kill(stream, signal)


def test_events_are_the_same_byte_by_byte(connection):
    stream = start(connection)
    raw = b"".join(
        frame.encode()
        for frame in (
            Frame(FrameType.STDOUT, stream, b"out", EOF),
            Frame(FrameType.STDERR, stream, b"", EOF),
            Frame(FrameType.EXIT, stream, two(0, 0)),
        )
    )
    events = []
    for byte in raw:
        connection.receive_data(bytes([byte]))
        while (event := connection.next_event()) is not NEED_DATA:
            events.append(event)
    assert [type(event).__name__ for event in events] == [
        "OutputReceived",
        "OutputReceived",
        "CommandExited",
    ]
