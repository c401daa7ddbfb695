"""QMP, the QEMU Machine Protocol: bytes in, messages out, commands to bytes. Pure.

Source: QEMU, docs/interop/qmp-spec.rst (QEMU Machine Protocol Specification). One JSON object a
line; QEMU greets, and takes commands once ``qmp_capabilities`` has been negotiated. Replies carry
the command's id, events come at any time.

PyPI's `qemu.qmp` speaks it on asyncio, and does not run under trio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import attrs

from microvm.errors import BackendCrashed

MAX_LINE_BYTES: Final = 1 << 20
"""Of a message. The longest that we ask for, the registers of 255 CPUs, is 400 KiB."""


@attrs.frozen
class Reply:
    """A command succeeded."""

    id: int
    value: Any


@attrs.frozen
class Refusal:
    """A command failed."""

    id: int
    description: str


@attrs.frozen
class Event:
    """Something happened."""

    name: str
    data: Mapping[str, Any]


QmpMessage = Reply | Refusal | Event


class QmpProtocolError(BackendCrashed):
    """What came is not QMP."""


class QmpSession:
    """One client's side of one connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def command(self, number: int, name: str, arguments: Mapping[str, Any] | None = None) -> bytes:
        """A command as bytes to send; what answers it carries its number."""
        message: dict[str, Any] = {"execute": name, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        return json.dumps(message).encode() + b"\n"

    def receive(self, data: bytes | bytearray) -> list[QmpMessage]:
        """The messages that `data` completes. What came is kept until its line ends.

        Raises:
            QmpProtocolError: it is not QMP; the session is of no more use.
        """
        scanned = len(self._buffer)
        self._buffer += data
        messages: list[QmpMessage] = []
        begin = 0
        while (end := self._buffer.find(b"\n", max(begin, scanned))) >= 0:
            line = bytes(self._buffer[begin:end]).strip()
            begin = end + 1
            if line:
                messages.extend(_message(line))
        del self._buffer[:begin]
        if len(self._buffer) > MAX_LINE_BYTES:
            raise QmpProtocolError(f"QEMU's monitor sent a line of over {MAX_LINE_BYTES} bytes.")
        return messages


def _message(line: bytes) -> list[QmpMessage]:
    """The message in a line; none if it is the greeting or of a kind that later QEMUs may have."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QmpProtocolError(f"QEMU's monitor sent what is not JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise QmpProtocolError(f"QEMU's monitor sent what is no object: {line[:80]!r}")
    match message:
        case {"event": str(name)}:
            data = message.get("data", {})
            return [Event(name, data if isinstance(data, dict) else {})]
        case {"return": value, "id": int(number)}:
            return [Reply(number, value)]
        case {"error": {"desc": str(description)}, "id": int(number)}:
            return [Refusal(number, description)]
        case {"error": {"desc": str(description)}}:
            raise QmpProtocolError(f"QEMU's monitor did not understand us: {description}")
        case _:
            return []
