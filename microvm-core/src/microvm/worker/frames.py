"""Frames: JSON objects of a bounded size on a byte stream. Pure.

A frame is its length in 4 bytes, big-endian, and as many bytes of JSON. Lone surrogates, which
stand for bytes of file names that are no UTF-8, pass unchanged, since all but ASCII is escaped.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from microvm.errors import WorkerProtocolError

MAX_FRAME_BYTES: Final = 2 << 20
"""Of JSON. What `values` makes at most is below that."""

_LENGTH: Final = struct.Struct(">I")

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """The frame that carries `message`.

    Raises:
        ValueError: it is too long, or is not made of JSON's types.
    """
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame would be {len(body)} bytes; {MAX_FRAME_BYTES} are allowed")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Takes a stream in pieces as they come; holds no more than one frame and one piece."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with these bytes.

        Raises:
            WorkerProtocolError: a frame is too long, or is no JSON object.
        """
        self._pending += data
        messages: list[Message] = []
        while len(self._pending) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._pending)
            if length > MAX_FRAME_BYTES:
                raise WorkerProtocolError(
                    f"The worker process announced a frame of {length} bytes; "
                    f"{MAX_FRAME_BYTES} are allowed."
                )
            end = _LENGTH.size + length
            if len(self._pending) < end:
                break
            messages.append(_parse(bytes(self._pending[_LENGTH.size : end])))
            del self._pending[:end]
        return messages


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WorkerProtocolError("The worker process sent a frame that is no JSON.") from error
    if not isinstance(message, dict):
        raise WorkerProtocolError("The worker process sent a frame that is no object.")
    return message
