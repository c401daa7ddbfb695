"""The host's side of the agent protocol, without IO.

Feed what the agent sends to `receive_data`, then take events out with `next_event` until it
answers `NEED_DATA`. Everything else returns bytes, to be sent in the order in which the calls
were made. Two rules:

1. the agent is not trusted: what is not in the protocol raises `GuestProtocolError`, at once and
   ever after;
2. the caller is: what only a mistake of ours can bring about raises `LocalProtocolError`.

A call for a command that has ended returns no bytes: its end crossed the call on the way.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

from microvm.console import visible_text
from microvm.errors import GuestProtocolError, MicrovmError
from microvm_guest.protocol import frames
from microvm_guest.protocol.commands import CommandStream, Phase, RunRequest
from microvm_guest.protocol.events import (
    NEED_DATA,
    CommandExited,
    CommandRefused,
    CommandStarted,
    ConnectionRefused,
    Event,
    HelloReceived,
    JobsReceived,
    NeedData,
    NoticeTaken,
    OutputReceived,
    OutputSkipped,
    PongReceived,
    ShutdownAgreed,
    StatusReceived,
    StdinReady,
)
from microvm_guest.protocol.fields import (
    NUMBERS,
    FieldTag,
    decode_fields,
    decode_number,
    encode_field,
)
from microvm_guest.protocol.frames import (
    CONNECTION,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameFlag,
    FrameReader,
    FrameType,
    Notice,
    ProtocolViolation,
)
from microvm_guest.protocol.jobs import AttachRequest, decode_jobs

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_TWO_U16 = struct.Struct("<HH")
_TWO_U32 = struct.Struct("<II")
_NOTICE = struct.Struct("<IQ")
_MAX_EXIT_CODE = 255
_REBUILD = "The image is of another version: run `microvm image build`."

_LOADS = frozenset({FieldTag.LOAD_1, FieldTag.LOAD_5, FieldTag.LOAD_15})
_OUTPUTS = {FrameType.STDOUT: Channel.STDOUT, FrameType.STDERR: Channel.STDERR}


class LocalProtocolError(MicrovmError, RuntimeError):
    """The host's code called for something that the protocol does not have."""

    code = "local_protocol"


class AgentConnection:
    """One connection to an agent. Not bound to any kind of IO; not for several threads."""

    def __init__(self) -> None:
        self._reader = FrameReader(frames.FROM_AGENT)
        self._streams: dict[int, CommandStream] = {}
        self._last_stream = 0
        self._greeted = False
        self._pings: set[int] = set()
        self._last_ping = 0
        self._status_wanted = 0
        self._shutdown_wanted = 0
        self._jobs_wanted = 0
        self._notices: Counter[int] = Counter()
        self._violation: str | None = None
        self._refused = False
        self.hello: HelloReceived | None = None
        """The agent's greeting, once it has come."""

    # --- what comes -----------------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes from the agent; call `next_event` until `NEED_DATA` before the next ones."""
        if not self._refused and self._violation is None:
            self._reader.feed(data)

    def next_event(self) -> Event | NeedData:
        """The next event, or `NEED_DATA`.

        Raises:
            GuestProtocolError: the agent broke the protocol; it will be raised again.
        """
        if self._violation is None:
            try:
                return self._next_event()
            except ProtocolViolation as violation:
                self._violation = str(violation)
        remedy = _REBUILD if self.hello is None else None
        raise GuestProtocolError(
            f"The guest's agent broke the protocol: it sent {self._violation}.", remedy=remedy
        )

    def _next_event(self) -> Event | NeedData:
        frame = None if self._refused else self._reader.next_frame()
        if frame is None:
            return NEED_DATA
        if frame.stream == CONNECTION:
            return self._connection_event(frame)
        stream = self._streams.get(frame.stream)
        if stream is None or self.hello is None:
            raise ProtocolViolation(f"a {frame.type.name} frame on stream {frame.stream}")
        stream.check(frame.type)
        return self._stream_event(frame, stream)

    def _connection_event(self, frame: Frame) -> Event:
        if frame.type is FrameType.ERROR:
            self._refused = True
            return ConnectionRefused(error=_error_code(frame), text=visible_text(frame.payload[4:]))
        if (frame.type is FrameType.HELLO) is not (self.hello is None):
            raise ProtocolViolation(f"a {frame.type.name} frame, where HELLO comes first and once")
        match frame.type:
            case FrameType.HELLO:
                self.hello = _parse_hello(frame.payload)
                return self.hello
            case FrameType.PONG:
                return self._pong(_U64.unpack(frame.payload)[0])
            case FrameType.JOBS:
                self._jobs_wanted -= 1
                if self._jobs_wanted < 0:
                    raise ProtocolViolation("a JOBS frame that nobody had asked for")
                return JobsReceived(jobs=decode_jobs(frame.payload))
            case FrameType.NOTICE:
                return self._notice_taken(_U32.unpack(frame.payload)[0])
            case FrameType.STATUS:
                self._status_wanted -= 1
                if self._status_wanted < 0:
                    raise ProtocolViolation("a STATUS frame that nobody had asked for")
                return StatusReceived(status=_parse_status(frame.payload))
            case _:
                self._shutdown_wanted -= 1
                if self._shutdown_wanted < 0:
                    raise ProtocolViolation("a SHUTDOWN frame that nobody had asked for")
                return ShutdownAgreed()

    def _pong(self, token: int) -> PongReceived:
        if token not in self._pings:
            raise ProtocolViolation("a PONG frame that answers no PING")
        self._pings.remove(token)
        return PongReceived(token=token)

    def _notice_taken(self, number: int) -> NoticeTaken:
        self._notices[number] -= 1
        if self._notices[number] < 0:
            raise ProtocolViolation("a NOTICE frame that answers none")
        return NoticeTaken(notice=Notice(number))

    def _stream_event(self, frame: Frame, stream: CommandStream) -> Event:
        match frame.type:
            case FrameType.STDOUT | FrameType.STDERR:
                channel = _OUTPUTS[frame.type]
                eof = bool(frame.flags & FrameFlag.EOF)
                stream.output(channel, len(frame.payload), eof)
                return OutputReceived(
                    stream=frame.stream, channel=channel, data=frame.payload, eof=eof
                )
            case FrameType.SKIPPED:
                length = _U64.unpack(frame.payload)[0]
                return OutputSkipped(stream=frame.stream, length=length)
            case FrameType.STARTED:
                stream.started()
                return CommandStarted(stream=frame.stream, pid=_U32.unpack(frame.payload)[0])
            case FrameType.WINDOW:
                number, length = _TWO_U32.unpack(frame.payload)
                if number != Channel.STDIN:
                    raise ProtocolViolation("a WINDOW frame for an output")
                closed = bool(frame.flags & FrameFlag.CLOSED)
                stream.stdin_taken(length, closed)
                return StdinReady(stream=frame.stream, closed=closed)
            case FrameType.ERROR:
                del self._streams[frame.stream]
                text = visible_text(frame.payload[4:])
                return CommandRefused(stream=frame.stream, error=_error_code(frame), text=text)
            case _:
                del self._streams[frame.stream]
                return _parse_exit(frame)

    # --- what goes ------------------------------------------------------------------------

    def greet(self, wall_time_ns: int) -> bytes:
        """The host's HELLO: the first bytes of the connection, sent without waiting for any.

        Args:
            wall_time_ns: Nanoseconds since 1970, which the guest's clock is set by.
        """
        if self._greeted:
            raise LocalProtocolError("HELLO is sent once.")
        self._greeted = True
        version = _TWO_U16.pack(frames.MAJOR, frames.MINOR)
        time = encode_field(FieldTag.WALL_TIME, wall_time_ns)
        return Frame(FrameType.HELLO, payload=frames.MAGIC + version + time).encode()

    def ping(self) -> tuple[int, bytes]:
        """A PING and the token that its `PongReceived` will carry."""
        self._last_ping += 1
        self._pings.add(self._last_ping)
        return self._last_ping, self._send(FrameType.PING, _U64.pack(self._last_ping))

    def ask_status(self) -> bytes:
        """Ask what the agent says of its guest."""
        self._status_wanted += 1
        return self._send(FrameType.STATUS)

    def set_clock(self, wall_time_ns: int) -> bytes:
        """Set the guest's wall clock, whatever it shows."""
        return self._send(FrameType.SET_CLOCK, _U64.pack(wall_time_ns))

    def ask_jobs(self) -> bytes:
        """Ask which jobs the agent keeps."""
        self._jobs_wanted += 1
        return self._send(FrameType.JOBS)

    def notify(self, notice: Notice, wall_time_ns: int) -> bytes:
        """Tell what happens to the machine; `NoticeTaken` follows.

        `PAUSING` is told again only when it has been taken.
        """
        self._notices[notice] += 1
        return self._send(FrameType.NOTICE, _NOTICE.pack(notice, wall_time_ns))

    def shutdown(self, *, power_off: bool = False) -> bytes:
        """Ask the guest to end itself, by a reset or by cutting the power."""
        self._shutdown_wanted += 1
        return self._send(FrameType.SHUTDOWN, flags=FrameFlag.POWER_OFF if power_off else 0)

    def run(self, request: RunRequest, wall_time_ns: int) -> tuple[int, bytes]:
        """Start a command, on the stream whose id is returned."""
        return self._open(FrameType.RUN, request, request.encode(wall_time_ns))

    def attach(self, request: AttachRequest) -> tuple[int, bytes]:
        """Follow a job, on the stream whose id is returned; its events are a command's."""
        flags = FrameFlag.FORGET if request.forget else 0
        return self._open(FrameType.ATTACH, request, request.encode(), flags)

    def _open(
        self,
        kind: FrameType,
        request: RunRequest | AttachRequest,
        payload: bytes,
        flags: int = 0,
    ) -> tuple[int, bytes]:
        if self._last_stream == frames.MAX_STREAM:
            raise LocalProtocolError("The connection has no more stream ids: open another.")
        self._last_stream += 1
        self._streams[self._last_stream] = CommandStream(request)
        stream = self._last_stream
        return stream, self._send(kind, payload, stream=stream, flags=flags)

    def stdin_credit(self, stream: int) -> int:
        """Bytes of stdin that may be sent now; 0 also where none can be any more."""
        command = self._streams.get(stream)
        if command is None or not command.stdin_open or self.hello is None:
            return 0
        return self.hello.stdin_window + command.stdin_granted - command.stdin_sent

    def stdin(self, stream: int, data: bytes | memoryview, *, eof: bool = False) -> bytes:
        """Send stdin, at most `stdin_credit` bytes; `eof` with or after the last of it."""
        command = self._streams.get(stream)
        if command is None or not command.stdin_open or command.phase is Phase.RELEASED:
            return b""
        if len(data) > self.stdin_credit(stream):
            raise LocalProtocolError("More stdin than the agent's window allows.")
        command.stdin_sent += len(data)
        command.stdin_open = not eof
        return b"".join(self._split(stream, data, eof))

    def _split(self, stream: int, data: bytes | memoryview, eof: bool) -> Iterator[bytes]:
        for start in range(0, max(len(data), 1), MAX_PAYLOAD):
            last = start + MAX_PAYLOAD >= len(data)
            piece = bytes(data[start : start + MAX_PAYLOAD])
            flags = FrameFlag.EOF if eof and last else 0
            yield self._send(FrameType.STDIN, piece, stream=stream, flags=flags)

    def grant(self, stream: int, channel: Channel, length: int) -> bytes:
        """Let the agent send `length` more bytes of an output; they have been consumed."""
        command = self._streams.get(stream)
        if command is None or not command.grant(channel, length):
            return b""
        return self._send(FrameType.WINDOW, _TWO_U32.pack(channel, length), stream=stream)

    def kill(self, stream: int, signal: int) -> bytes:
        """Send a signal to the command's process group."""
        if not 1 <= signal <= frames.MAX_SIGNAL:
            raise LocalProtocolError(f"There is no signal {signal}.")
        return self._for_command(stream, FrameType.KILL, _U32.pack(signal))

    def resize(self, stream: int, rows: int, cols: int) -> bytes:
        """Tell a command's terminal its size."""
        return self._for_command(stream, FrameType.RESIZE, _TWO_U16.pack(rows, cols))

    def close(self, stream: int, *, forget: bool = False) -> bytes:
        """Let go of a command: the agent kills its session; its end is all that still matters.

        A job goes on, unless the agent is to `forget` it.
        """
        raw = self._for_command(stream, FrameType.CLOSE, flags=FrameFlag.FORGET if forget else 0)
        if raw:
            self._streams[stream].phase = Phase.RELEASED
        return raw

    def _for_command(
        self, stream: int, kind: FrameType, payload: bytes = b"", flags: int = 0
    ) -> bytes:
        command = self._streams.get(stream)
        if command is None or command.phase is Phase.RELEASED:
            return b""
        return self._send(kind, payload, stream=stream, flags=flags)

    def _send(
        self, kind: FrameType, payload: bytes = b"", *, stream: int = CONNECTION, flags: int = 0
    ) -> bytes:
        if not self._greeted:
            raise LocalProtocolError("HELLO is sent first.")
        return Frame(kind, stream, payload, flags).encode()


# --- payloads ------------------------------------------------------------------------------


def _error_code(frame: Frame) -> int:
    code: int = _U32.unpack_from(frame.payload)[0]
    return code


def _parse_hello(payload: bytes) -> HelloReceived:
    if not payload.startswith(frames.MAGIC):
        raise ProtocolViolation("something else than an agent's HELLO")
    major, minor = _TWO_U16.unpack_from(payload, len(frames.MAGIC))
    if major != frames.MAJOR:
        raise ProtocolViolation(f"a HELLO of version {major}.{minor}; this host is {frames.MAJOR}")
    said = _parse_status(payload[len(frames.MAGIC) + _TWO_U16.size :])
    window = int(said.get("stdin_window", 0))
    if not 0 < window <= frames.MAX_WINDOW:
        raise ProtocolViolation(f"a HELLO with a stdin window of {window} bytes")
    return HelloReceived(
        major=major,
        minor=minor,
        build=str(said.get("build", "")),
        kernel=str(said.get("kernel", "")),
        boot_ns=int(said.get("boot_ns", 0)),
        stdin_window=window,
        max_commands=int(said.get("max_commands", 0)),
    )


def _parse_status(payload: bytes) -> dict[str, int | float | str]:
    """Known fields by their tag's name in lower case; the other kinds do not belong here."""
    said: dict[str, int | float | str] = {}
    for tag, value in decode_fields(payload):
        if tag in _LOADS:
            said[tag.name.lower()] = decode_number(tag, value) / 100
        elif tag in NUMBERS:
            said[tag.name.lower()] = decode_number(tag, value)
        elif tag in (FieldTag.BUILD, FieldTag.KERNEL):
            said[tag.name.lower()] = visible_text(value)
    return said


def _parse_exit(frame: Frame) -> CommandExited:
    code, signal = _TWO_U32.unpack(frame.payload)
    if signal == 0 and code <= _MAX_EXIT_CODE:
        return CommandExited(stream=frame.stream, exit_code=code, signal=None)
    if code == 0 and signal <= frames.MAX_SIGNAL:
        return CommandExited(stream=frame.stream, exit_code=None, signal=signal)
    raise ProtocolViolation(f"an EXIT frame with code {code} and signal {signal}")
