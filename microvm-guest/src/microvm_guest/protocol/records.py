"""Records: how files travel between host and guest, to bytes and back. Pure.

A tree is a walk: `Entry` of a directory enters it, `RecordKind.END` leaves it, and a name is one
component. So there are no paths in it to lead anywhere, and no sizes to be believed: a file's bytes
come until its END. docs/reference/agent-protocol.md, "Files".
"""

from __future__ import annotations

import enum
import stat
import struct
from typing import Final

import attrs

from microvm_guest.protocol.frames import ProtocolViolation

HEADER: Final = struct.Struct("<IBBH")
"""Payload length, kind, zero, zero."""
ENTRY: Final = struct.Struct("<Iq")
"""Mode, modification time in nanoseconds since 1970."""
LINK: Final = struct.Struct("<IqH")
"""The same, and the length of the name; the target follows it."""
INFO: Final = struct.Struct("<IIIQqH")
"""Mode, owner, group, size, modification time, length of the name; a link's target follows it."""
MAX_RECORD: Final = 65536
MAX_NAME: Final = 255
MAX_TARGET: Final = 4095
MAX_DEPTH: Final = 128
"""Directories within directories, in what an agent sends or takes."""
_MODE_BITS = 0o7777
_U32 = struct.Struct("<I")


class RecordKind(enum.IntEnum):
    """What a record is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    DATA = 4
    END = 5
    SKIPPED = 6
    INFO = 7
    DONE = 8
    ERROR = 9


@attrs.frozen
class Record:
    """One record, its payload not looked at."""

    kind: RecordKind
    payload: bytes = b""

    def encode(self) -> bytes:
        """The record as bytes."""
        return HEADER.pack(len(self.payload), self.kind, 0, 0) + self.payload


@attrs.frozen(kw_only=True)
class Entry:
    """The beginning of a file or directory, or a whole symlink."""

    kind: RecordKind
    mode: int
    """Permission bits, with set-user-id and its like."""
    mtime_ns: int
    """0: not told."""
    name: bytes
    """One component; empty for what the transfer is of, whose name its receiver knows."""
    target: bytes = b""

    def encode(self) -> bytes:
        """The record as bytes."""
        if self.kind is RecordKind.SYMLINK:
            head = LINK.pack(self.mode, self.mtime_ns, len(self.name))
            return Record(self.kind, head + self.name + self.target).encode()
        return Record(self.kind, ENTRY.pack(self.mode, self.mtime_ns) + self.name).encode()


@attrs.frozen(kw_only=True)
class InfoRecord:
    """What stat(2) says of something in the guest."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    name: bytes
    target: bytes

    def encode(self) -> bytes:
        """The record as bytes."""
        head = INFO.pack(self.mode, self.uid, self.gid, self.size, self.mtime_ns, len(self.name))
        return Record(RecordKind.INFO, head + self.name + self.target).encode()


class RecordReader:
    """Bytes in, records out. Holds one record, and what `feed` was given last."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes held that no record has been made of."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes; then call `next_record` until it returns None."""
        self._buffer += data

    def next_record(self) -> Record | None:
        """The next whole record, or None until more bytes come.

        Raises:
            ProtocolViolation: no agent says that.
        """
        if len(self._buffer) < HEADER.size:
            return None
        length, kind, zero, zeros = HEADER.unpack_from(self._buffer)
        empty = kind == RecordKind.DATA and not length  # there could be any number of them
        if length > MAX_RECORD or kind not in _KINDS or zero or zeros or empty:
            raise ProtocolViolation(f"a record of kind {kind} and {length} bytes")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            payload = bytes(view[HEADER.size : end])
        del self._buffer[:end]
        return Record(RecordKind(kind), payload)


_KINDS = frozenset(int(kind) for kind in RecordKind)


def is_one_name(name: bytes) -> bool:
    """Whether it names something in a directory, and nothing anywhere else."""
    return (
        0 < len(name) <= MAX_NAME
        and b"/" not in name
        and b"\0" not in name
        and name not in (b".", b"..")
    )


def decode_entry(record: Record, *, root: bool) -> Entry:
    """The entry in a FILE, DIRECTORY or SYMLINK record.

    Args:
        record: What has come.
        root: Whether it is what the transfer is of, whose name does not matter.

    Raises:
        ProtocolViolation: it is cut short, or names no file of one directory.
    """
    form = LINK if record.kind is RecordKind.SYMLINK else ENTRY
    if len(record.payload) < form.size:
        raise ProtocolViolation(f"a {record.kind.name} record that is cut short")
    mode, mtime, *lengths = form.unpack_from(record.payload)
    rest = record.payload[form.size :]
    name, target = (rest[: lengths[0]], rest[lengths[0] :]) if lengths else (rest, b"")
    if mode & ~_MODE_BITS or (not root and not is_one_name(name)):
        raise ProtocolViolation(f"a {record.kind.name} record of mode {mode:o} and name {name!r}")
    if record.kind is RecordKind.SYMLINK and (
        len(name) != lengths[0] or not 0 < len(target) <= MAX_TARGET or b"\0" in target
    ):
        raise ProtocolViolation("a SYMLINK record that leads nowhere")
    return Entry(kind=record.kind, mode=mode, mtime_ns=mtime, name=name, target=target)


def decode_info(record: Record, *, root: bool) -> InfoRecord:
    """What an INFO record says.

    Raises:
        ProtocolViolation: it is cut short, or names no file of one directory.
    """
    if len(record.payload) < INFO.size:
        raise ProtocolViolation("an INFO record that is cut short")
    mode, uid, gid, size, mtime, length = INFO.unpack_from(record.payload)
    rest = record.payload[INFO.size :]
    name, target = rest[:length], rest[length:]
    wrong_name = name != b"" if root else not is_one_name(name)
    if wrong_name or len(name) != length or stat.S_IFMT(mode) == 0 or mode > 0o177777:
        raise ProtocolViolation(f"an INFO record of mode {mode:o} and name {name!r}")
    if len(target) > MAX_TARGET or (target and not stat.S_ISLNK(mode)):
        raise ProtocolViolation("an INFO record with a target that can't be")
    return InfoRecord(
        mode=mode, uid=uid, gid=gid, size=size, mtime_ns=mtime, name=name, target=target
    )


def decode_error(record: Record) -> tuple[int, bytes]:
    """The guest's errno in an ERROR record, and the path it is about.

    Raises:
        ProtocolViolation: it is none.
    """
    if len(record.payload) < _U32.size:
        raise ProtocolViolation("an ERROR record that is cut short")
    number: int = _U32.unpack_from(record.payload)[0]
    if not 0 < number < 4096:
        raise ProtocolViolation(f"an ERROR record of number {number}")
    return number, record.payload[_U32.size :]


def encode_error(number: int, path: bytes = b"") -> bytes:
    """As the agent does it."""
    return Record(RecordKind.ERROR, _U32.pack(number) + path).encode()
