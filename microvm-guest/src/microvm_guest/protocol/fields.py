"""Tagged fields, the payload of HELLO, RUN, ATTACH, STATUS and JOBS.

Each is u16 tag, u16 length, value. A reader skips tags that it does not know, so that a minor
version can add some; a known tag whose value has the wrong length is a violation.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from types import MappingProxyType

from microvm_guest.protocol.frames import ProtocolViolation

_HEAD = struct.Struct("<HH")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
MAX_FIELD = 0xFFFF


class FieldTag(enum.IntEnum):
    """What a field says."""

    ARG = 1
    ENV = 2
    CWD = 3
    USER = 4
    TTY = 5
    WINDOW = 6
    RUN_FLAGS = 7
    WALL_TIME = 8
    LOG_BYTES = 9
    JOB = 10
    LOG_FROM = 11
    BUILD = 16
    KERNEL = 17
    BOOT_NS = 18
    STDIN_WINDOW = 19
    MAX_COMMANDS = 20
    UPTIME_MS = 32
    MEM_TOTAL_KIB = 33
    MEM_AVAILABLE_KIB = 34
    COMMANDS = 35
    CONNECTIONS = 36
    PID = 37
    LOAD_1 = 38
    LOAD_5 = 39
    LOAD_15 = 40
    JOBS = 41
    PAUSES = 42


_TAGS = MappingProxyType({int(tag): tag for tag in FieldTag})


class RunFlag(enum.IntFlag):
    """Bits of RUN_FLAGS."""

    MERGE = 0x01
    """stderr goes where stdout goes."""
    NO_STDIN = 0x02
    """stdin is /dev/null."""
    KEEP = 0x04
    """The command outlives the connection."""
    FILES = 0x08
    """Not a program: the agent's own way with files."""
    DETACH = 0x10
    """A job: a command without a stream, its output in a log."""


NO_RUN_FLAGS = RunFlag(0)

NUMBERS = MappingProxyType(
    {
        FieldTag.WINDOW: _U32,
        FieldTag.RUN_FLAGS: _U32,
        FieldTag.STDIN_WINDOW: _U32,
        FieldTag.MAX_COMMANDS: _U32,
        FieldTag.COMMANDS: _U32,
        FieldTag.CONNECTIONS: _U32,
        FieldTag.PID: _U32,
        FieldTag.LOG_BYTES: _U32,
        FieldTag.LOAD_1: _U32,
        FieldTag.LOAD_5: _U32,
        FieldTag.LOAD_15: _U32,
        FieldTag.JOBS: _U32,
        FieldTag.PAUSES: _U32,
        FieldTag.WALL_TIME: _U64,
        FieldTag.LOG_FROM: _U64,
        FieldTag.BOOT_NS: _U64,
        FieldTag.UPTIME_MS: _U64,
        FieldTag.MEM_TOTAL_KIB: _U64,
        FieldTag.MEM_AVAILABLE_KIB: _U64,
    }
)
"""The tags whose value is one number, and its form."""


def encode_field(tag: FieldTag, value: int | str | bytes) -> bytes:
    """One field. Text is UTF-8, with surrogates standing for the bytes that are not."""
    if isinstance(value, int):
        raw = NUMBERS[tag].pack(value)
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
    else:
        raw = value
    return _HEAD.pack(tag, len(raw)) + raw


def decode_fields(payload: bytes) -> Iterator[tuple[FieldTag, bytes]]:
    """The known fields of a payload, in order.

    Raises:
        ProtocolViolation: the payload ends inside a field.
    """
    at = 0
    while at < len(payload):
        if len(payload) - at < _HEAD.size:
            raise ProtocolViolation("a payload that ends inside a field's head")
        tag, length = _HEAD.unpack_from(payload, at)
        at += _HEAD.size
        if len(payload) - at < length:
            raise ProtocolViolation("a payload that ends inside a field")
        if tag in _TAGS:
            yield _TAGS[tag], payload[at : at + length]
        at += length


def decode_number(tag: FieldTag, value: bytes) -> int:
    """The number in a field of one of `NUMBERS`' tags.

    Raises:
        ProtocolViolation: it is not as long as such a number is.
    """
    form = NUMBERS[tag]
    if len(value) != form.size:
        raise ProtocolViolation(f"a {tag.name} field of {len(value)} bytes")
    number: int = form.unpack(value)[0]
    return number
