"""What is said through a control socket: lines of JSON, bounded. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from microvm.errors import MicrovmError

MAX_REQUEST_BYTES: Final = 4096
MAX_ANSWER_BYTES: Final = 4 << 20
"""A machine has some hundred counters, and a thousand places where its guest left."""

COPIES: Final = ("copy-in", "copy-out")
OF_DEVICES: Final = ("device-stream", "device-command")
VERBS: Final = ("info", "stats", "stop", "console", *COPIES, *OF_DEVICES)


class BadRequest(MicrovmError):
    """What a client said is no request."""

    code = "control.request"


class LineReader:
    """Takes a stream in pieces; gives its lines, each bounded.

    Args:
        limit: Of a line, in bytes, the line break not counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._pending += data

    @property
    def is_full(self) -> bool:
        """Whether there is more of it than one line may be: enough for now."""
        return len(self._pending) > self._limit

    def next(self) -> bytes | None:
        """The next line, or None while it has not come whole.

        Raises:
            BadRequest: it is longer than allowed, also when its end has not come.
        """
        end = self._pending.find(b"\n", 0, self._limit + 1)
        if end < 0:
            if len(self._pending) > self._limit:
                raise BadRequest(f"A line may have {self._limit} bytes.")
            return None
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line

    def rest(self) -> bytes:
        """What came behind the last line, which is the caller's from now on."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest


def request(verb: str, **more: Any) -> bytes:
    """The line that asks for it."""
    return _line({"do": verb, **more})


def parse_request(line: bytes) -> str:
    """What is asked for: one of `VERBS`.

    Raises:
        BadRequest: nothing that there is.
    """
    message = _parse(line)
    verb = message.get("do")
    if not isinstance(verb, str) or verb not in VERBS:
        raise BadRequest("There is no such request.", remedy=f"Say one of: {', '.join(VERBS)}.")
    return verb


def parse_paths(line: bytes) -> tuple[str, str]:
    """Of one of `COPIES`: the path here and the path in the guest.

    Raises:
        BadRequest: they are not both there, or not whole paths.
    """
    message = _parse(line)
    local, guest = message.get("local"), message.get("guest")
    for path in (local, guest):
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise BadRequest("A copy has two whole paths, local and guest.")
    return str(local), str(guest)


def parse_device(line: bytes) -> tuple[str, str, dict[str, Any]]:
    """Of one of `OF_DEVICES`: the device, the stream's or the command's name, its arguments.

    Raises:
        BadRequest: they are not there.
    """
    message = _parse(line)
    device, name, arguments = (message.get(key) for key in ("device", "name", "arguments"))
    if not isinstance(device, str) or not isinstance(name, str):
        raise BadRequest("This is asked of a device, by a name: both texts.")
    if arguments is not None and not isinstance(arguments, dict):
        raise BadRequest("A command's arguments are an object.")
    return device, name, arguments or {}


def answer(value: dict[str, Any]) -> bytes:
    """The line that says so."""
    return _line({"ok": value})


def refusal(error: MicrovmError) -> bytes:
    """The line that says that it can't be, and why."""
    return _line({"error": error.code, "message": error.message, "remedy": error.remedy})


class Refused(MicrovmError):
    """A machine refused what it was asked for."""

    code = "control.refused"


def parse_answer(line: bytes) -> dict[str, Any]:
    """What a machine answered.

    Raises:
        Refused: it did not do it; with its own words.
        BadRequest: it did not answer as it should.
    """
    message = _parse(line)
    value = message.get("ok")
    if isinstance(value, dict):
        return value
    said, remedy = message.get("message"), message.get("remedy")
    if isinstance(said, str):
        raise Refused(said, remedy=remedy if isinstance(remedy, str) else None)
    raise BadRequest("The machine's program answered something else.")


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequest("A line that is no JSON.") from None
    if not isinstance(message, dict):
        raise BadRequest("A line that is no JSON object.")
    return message
