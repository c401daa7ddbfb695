"""Frames: the unit of the agent protocol, to bytes and back.

A frame is a header of 12 bytes and a payload of at most 64 KiB:

    u32 payload length, u8 type, u8 flags, u16 zero, u32 stream

all little endian. Stream 0 is the connection itself; any other is a command. What a frame of
each type may look like, by who sends it, is the two tables at the end; `FrameReader` holds the
other side to its table before a byte of the payload has come. The C copy of these numbers is
`agent/wire.h`; the page is docs/reference/agent-protocol.md.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from types import MappingProxyType

import attrs

MAJOR = 1
MINOR = 2
MAGIC = b"mvmagent"

HEADER = struct.Struct("<IBBHI")
MAX_PAYLOAD = 65536
MAX_ERROR_TEXT = 512
MAX_WINDOW = 16 * 1024 * 1024
"""The furthest that either side may let the other be ahead on one stream."""
MAX_SIGNAL = 64
CONNECTION = 0
"""The stream id of the connection itself."""
MAX_STREAM = 0xFFFF_FFFF


class FrameType(enum.IntEnum):
    """What a frame is about."""

    HELLO = 0x01
    PING = 0x02
    PONG = 0x03
    STATUS = 0x04
    SET_CLOCK = 0x05
    SHUTDOWN = 0x06
    ERROR = 0x07
    JOBS = 0x08
    NOTICE = 0x09
    RUN = 0x10
    STARTED = 0x11
    STDIN = 0x12
    STDOUT = 0x13
    STDERR = 0x14
    WINDOW = 0x15
    EXIT = 0x16
    KILL = 0x17
    RESIZE = 0x18
    CLOSE = 0x19
    ATTACH = 0x1A
    SKIPPED = 0x1B


class FrameFlag(enum.IntFlag):
    """Bits of a frame's flags; which of them a type may carry is in the tables below."""

    EOF = 0x01
    """STDIN, STDOUT, STDERR: the last frame of its direction."""
    CLOSED = 0x01
    """WINDOW from the agent: nobody reads the command's stdin any more."""
    POWER_OFF = 0x01
    """SHUTDOWN: cut the power rather than reset."""
    FORGET = 0x01
    """ATTACH, and CLOSE of what is attached to a job: kill the job and keep nothing of it."""


class Channel(enum.IntEnum):
    """What a WINDOW frame speaks of, numbered as file descriptors are."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


class ErrorCode(enum.IntEnum):
    """Why the agent could not do what it was asked."""

    PROTOCOL = 1
    BUSY = 2
    RESOURCES = 3
    NOT_FOUND = 4
    EXEC = 5
    CWD = 6
    USER = 7
    TTY = 8
    JOB = 9


class Notice(enum.IntEnum):
    """What the host tells of the machine."""

    PAUSING = 1
    RESUMED = 2
    CLOCK_SET_BACK = 3
    """Since minor version 2."""


class ProtocolViolation(Exception):
    """The bytes are not in the protocol. Internal: whose fault it is, the caller knows."""


@attrs.frozen
class Frame:
    """One frame."""

    type: FrameType
    stream: int = CONNECTION
    payload: bytes = b""
    flags: int = 0

    def encode(self) -> bytes:
        """The frame as bytes, for the wire."""
        header = HEADER.pack(len(self.payload), self.type, self.flags, 0, self.stream)
        return header + self.payload


@attrs.frozen
class Rule:
    """What a frame of some type looks like."""

    min_payload: int
    max_payload: int
    on_stream: bool
    """Whether it belongs to a command rather than to the connection."""
    either: bool = False
    """ERROR alone may be of both."""
    flags: int = 0


class FrameReader:
    """Bytes in, frames out.

    Memory is bounded by one frame and whatever `feed` was given last, if the caller takes all
    frames out before it feeds again.

    Args:
        rules: `FROM_AGENT` on the host, `FROM_HOST` in an agent.
    """

    def __init__(self, rules: Mapping[int, Rule]) -> None:
        self._rules = rules
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that have come; then call `next_frame` until it returns None."""
        self._buffer += data

    @property
    def buffered(self) -> int:
        """Bytes held that no frame has been made of."""
        return len(self._buffer)

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes come.

        Raises:
            ProtocolViolation: the header is not one that the other side may send. The reader
                is of no more use.
        """
        if len(self._buffer) < HEADER.size:
            return None
        length, kind, flags, reserved, stream = HEADER.unpack_from(self._buffer)
        rule = self._rules.get(kind)
        if rule is None:
            raise ProtocolViolation(f"a frame of type {kind:#04x}, which is not one it may send")
        name = FrameType(kind).name
        if not rule.min_payload <= length <= rule.max_payload:
            raise ProtocolViolation(f"a {name} frame with a payload of {length} bytes")
        if reserved or flags & ~int(rule.flags):
            raise ProtocolViolation(f"a {name} frame with bits set that have no meaning")
        if not rule.either and rule.on_stream is (stream == CONNECTION):
            raise ProtocolViolation(f"a {name} frame on stream {stream}")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            payload = bytes(view[HEADER.size : end])
        del self._buffer[:end]
        return Frame(FrameType(kind), stream, payload, flags)


_HELLO = Rule(len(MAGIC) + 4, 4096, on_stream=False)
_DATA = Rule(0, MAX_PAYLOAD, on_stream=True, flags=FrameFlag.EOF)

FROM_HOST: Mapping[int, Rule] = MappingProxyType(
    {
        FrameType.HELLO: _HELLO,
        FrameType.PING: Rule(8, 8, on_stream=False),
        FrameType.STATUS: Rule(0, 0, on_stream=False),
        FrameType.SET_CLOCK: Rule(8, 8, on_stream=False),
        FrameType.SHUTDOWN: Rule(0, 0, on_stream=False, flags=FrameFlag.POWER_OFF),
        FrameType.JOBS: Rule(0, 0, on_stream=False),
        FrameType.NOTICE: Rule(12, 12, on_stream=False),
        FrameType.RUN: Rule(4, MAX_PAYLOAD, on_stream=True),
        FrameType.STDIN: _DATA,
        FrameType.WINDOW: Rule(8, 8, on_stream=True),
        FrameType.KILL: Rule(4, 4, on_stream=True),
        FrameType.RESIZE: Rule(4, 4, on_stream=True),
        FrameType.CLOSE: Rule(0, 0, on_stream=True, flags=FrameFlag.FORGET),
        FrameType.ATTACH: Rule(8, 256, on_stream=True, flags=FrameFlag.FORGET),
    }
)
"""What a host may send."""

FROM_AGENT: Mapping[int, Rule] = MappingProxyType(
    {
        FrameType.HELLO: _HELLO,
        FrameType.PONG: Rule(8, 8, on_stream=False),
        FrameType.STATUS: Rule(0, 4096, on_stream=False),
        FrameType.SHUTDOWN: Rule(0, 0, on_stream=False),
        FrameType.JOBS: Rule(0, MAX_PAYLOAD, on_stream=False),
        FrameType.NOTICE: Rule(4, 4, on_stream=False),
        FrameType.ERROR: Rule(4, 4 + MAX_ERROR_TEXT, on_stream=True, either=True),
        FrameType.STARTED: Rule(4, 4, on_stream=True),
        FrameType.STDOUT: _DATA,
        FrameType.STDERR: _DATA,
        FrameType.WINDOW: Rule(8, 8, on_stream=True, flags=FrameFlag.CLOSED),
        FrameType.EXIT: Rule(8, 8, on_stream=True),
        FrameType.SKIPPED: Rule(8, 8, on_stream=True),
    }
)
"""What an agent may send."""
