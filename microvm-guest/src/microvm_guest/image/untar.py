"""Reading the tar archive inside a Debian package, strictly and with bounds.

Source: deb(5), "data.tar": "old-style (v7) tar, pre-POSIX ustar, a subset of GNU (new style long
pathnames and long linknames) and a subset of POSIX ustar (long names support)" archives. What dpkg
itself does not take is refused here as well: extended headers, sparse files, base-256 numbers.

Python's own reader takes far more than that, and believes sizes in headers before it has seen the
bytes. Here nothing is held in memory but a header, a long name of at most `MAX_NAME_BYTES`, and
one piece of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Final

import attrs

BLOCK: Final = 512
PIECE_BYTES: Final = 1 << 18
MAX_NAME_BYTES: Final = 4095
_MAGICS: Final = (b"ustar\0" + b"00", b"ustar  \0", bytes(8))
_REGULAR: Final = b"0\0"
_LONG_NAME, _LONG_LINK = b"L", b"K"


class TarError(ValueError):
    """The archive is not what a Debian package may hold."""


@attrs.frozen(kw_only=True)
class Member:
    """A member's header; the name is as it stands there, ``./usr/bin/env``."""

    name: str
    kind: str
    """``file``, ``hardlink``, ``symlink``, ``directory``, ``device``."""
    mode: int
    """Permission bits, at most 0o7777."""
    uid: int
    gid: int
    size: int
    """Bytes of content; 0 unless it is a file."""
    target: str
    """Of links."""


_KINDS: Final = {
    b"0": "file",
    b"\0": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "device",
}

Content = Iterator[bytes]


def members(read: Callable[[int], bytes]) -> Iterator[tuple[Member, Content]]:
    """The members of an archive, in order, each with its content in pieces.

    What the caller leaves of a content is skipped. Bytes behind the archive's end are not read.

    Args:
        read: Returns up to that many bytes of the archive; empty at its end.

    Raises:
        TarError: the archive is cut off, or holds what a package may not.
    """
    long: dict[bytes, str] = {}
    while (header := _exactly(read, BLOCK)).strip(b"\0"):
        _check(header)
        flag, size = header[156:157], _number(header[124:136], "size")
        if flag in (_LONG_NAME, _LONG_LINK):
            if flag in long or not 0 < size <= MAX_NAME_BYTES + 1:
                raise TarError(f"a long name of {size} bytes")
            long[flag] = _text(_exactly(read, -(-size // BLOCK) * BLOCK)[:size])
            continue
        member = _member(header, flag, size, long)
        long = {}
        content = _content(read, member.size)
        yield member, content
        for _ in content:
            pass
    if long:
        raise TarError("a long name for nothing")


def _member(header: bytes, flag: bytes, size: int, long: dict[bytes, str]) -> Member:
    kind = _KINDS.get(flag)
    if kind is None:
        raise TarError(f"a member of type {flag!r}")
    if kind != "file" and size and kind != "hardlink":
        raise TarError(f"a {kind} with content")
    name = _text(header[:100])
    if header[257:265] == _MAGICS[0] and (prefix := _text(header[345:500])):
        name = f"{prefix}/{name}"
    return Member(
        name=long.get(_LONG_NAME, name),
        kind=kind,
        mode=_number(header[100:108], "mode") & 0o7777,
        uid=_number(header[108:116], "uid"),
        gid=_number(header[116:124], "gid"),
        size=size if kind == "file" else 0,
        target=long.get(_LONG_LINK, _text(header[157:257])),
    )


def _check(header: bytes) -> None:
    if header[257:265] not in _MAGICS:
        raise TarError("no tar header where one should be")
    blanked = header[:148] + b" " * 8 + header[156:]
    if sum(blanked) != _number(header[148:156], "checksum"):
        raise TarError("a header with a wrong checksum")


def _number(field: bytes, what: str) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise TarError(f"a {what} of {digits[:16]!r}")
    return int(digits, 8)


def _text(field: bytes) -> str:
    try:
        return field.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise TarError(f"a name that is not UTF-8: {field[:60]!r}") from None


def _content(read: Callable[[int], bytes], size: int) -> Content:
    left, padding = size, -size % BLOCK
    while left:
        piece = read(min(left, PIECE_BYTES))
        if not piece:
            raise TarError(f"the archive's end, {left} bytes too early")
        left -= len(piece)
        yield piece
    _exactly(read, padding)


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        piece = read(count - len(parts))
        if not piece:
            raise TarError("the archive's end where more should be")
        parts += piece
    return bytes(parts)


def reader(stream: IO[bytes]) -> Callable[[int], bytes]:
    """`read` of a binary stream, as `members` takes it."""
    return stream.read
