"""OpenVPN's management protocol, without IO: bytes in, messages out; commands as bytes.

After OpenVPN's doc/management-notes.txt, as of 2.6; 2.7 says nothing different to a client. A line
is a message. One that begins with ``>`` comes by itself (real-time); one that begins with
``SUCCESS:`` or ``ERROR:`` answers a command; others are the body of an answer, up to ``END``.

The other side is in the guest, and is not trusted: lines are bounded, and what is no message is a
`ManagementError` or an `Unknown`, never an exception of Python's. All text is made visible before
anything else, since it may come to somebody's terminal or log.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from microvm.console import visible_text
from microvm_guest.openvpn.errors import ManagementError

MAX_LINE: Final = 16 * 1024
"""OpenVPN's longest are log lines, bounded by its ERR_BUF_SIZE of 10240."""
MAX_VALUE: Final = 4096
"""Of a password: OpenVPN's USER_PASS_LEN."""


@attrs.frozen(kw_only=True)
class StateLine:
    """``>STATE:``: what the daemon does now."""

    name: str
    """``CONNECTING``, ``WAIT``, ``AUTH``, ..., as the daemon says it."""
    detail: str = ""
    """``SUCCESS``, or why it reconnects or exits."""
    local_ip: str = ""
    remote_ip: str = ""
    remote_port: str = ""
    local_ip6: str = ""


@attrs.frozen(kw_only=True)
class NeedPassword:
    """``>PASSWORD:Need``: it waits for a name and a password, or for a passphrase."""

    realm: str
    """``Auth``, ``Private Key``, ``HTTP Proxy``, ..."""
    username: bool
    challenge: str | None = None
    """Of a static challenge: the question."""
    echo: bool = False
    """Whether the answer to it may be seen on the screen."""


@attrs.frozen(kw_only=True)
class VerificationFailed:
    """``>PASSWORD:Verification Failed``: what was given is wrong."""

    realm: str
    said: str = ""
    """The server's own words; none where they are a challenge, which has a secret in it."""
    challenge: DynamicChallenge | None = None


@attrs.frozen(kw_only=True)
class DynamicChallenge:
    """CRV1: not wrong, but the server wants one answer more."""

    state_id: str = attrs.field(repr=False)
    username: str
    text: str
    echo: bool
    wants_answer: bool


@attrs.frozen(kw_only=True)
class AuthToken:
    """``>PASSWORD:Auth-Token``: a secret of the session's; the daemon keeps it itself."""


@attrs.frozen(kw_only=True)
class Hold:
    """``>HOLD:``: it waits for `hold release`."""

    wait_s: int
    """How long it would have waited by itself."""


@attrs.frozen(kw_only=True)
class LogText:
    """``>LOG:``."""

    flags: str
    """Some of I, F, N, W, D."""
    text: str


@attrs.frozen(kw_only=True)
class ByteCount:
    """``>BYTECOUNT:``."""

    received: int
    sent: int


@attrs.frozen(kw_only=True)
class Fatal:
    """``>FATAL:``: its last words."""

    text: str


@attrs.frozen(kw_only=True)
class NeedOk:
    """``>NEED-OK:`` or ``>NEED-STR:``: somebody is to do or say something."""

    kind: str
    name: str
    text: str


@attrs.frozen(kw_only=True)
class Remote:
    """``>REMOTE:``: where it is about to connect; waits for `remote ...`."""

    host: str
    port: int
    proto: str


@attrs.frozen(kw_only=True)
class UpDown:
    """``>UPDOWN:`` with all of its environment: the interface is there, or is going."""

    up: bool
    env: Mapping[str, str] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class InfoText:
    """``>INFO:`` or ``>INFOMSG:``."""

    text: str


@attrs.frozen(kw_only=True)
class Success:
    """The answer to a command that was carried out."""

    text: str


@attrs.frozen(kw_only=True)
class Failure:
    """The answer to a command that was not."""

    text: str


@attrs.frozen(kw_only=True)
class Body:
    """A line of an answer that has several."""

    text: str


@attrs.frozen(kw_only=True)
class End:
    """Behind such lines."""


@attrs.frozen(kw_only=True)
class Unknown:
    """A real-time message that this side does not know; to be passed over."""

    kind: str


Message = (
    StateLine | NeedPassword | VerificationFailed | AuthToken | Hold | LogText | ByteCount | Fatal
    | NeedOk | Remote | UpDown | InfoText | Success | Failure | Body | End | Unknown
)  # fmt: skip

_NEED: Final = re.compile(
    r"Need '(?P<realm>[^']*)' (?P<what>username/password|password)(?P<rest>.*)"
)
_STATIC: Final = re.compile(r" SC:(?P<flags>\d+),(?P<text>.*)")
_FAILED: Final = re.compile(r"Verification Failed: '(?P<realm>[^']*)'(?: \['(?P<said>.*)'\])?")
_FAILED_ALONE: Final = re.compile(r"Verification Failed: \['(?P<said>.*)'\]")
CHALLENGE: Final = "CRV1:"
"""How the server's words begin that are a dynamic challenge."""
_CRV1: Final = re.compile(
    rf"{CHALLENGE}(?P<flags>[^:]*):(?P<id>[^:]*):(?P<user>[^:]*):(?P<text>.*)"
)
_NEED_OK: Final = re.compile(r"Need '(?P<name>[^']*)' \S+ MSG:(?P<text>.*)")
_NUMBER: Final = re.compile(r"\d{1,20}", re.ASCII)
MAX_ENV: Final = 512
"""Variables of one UPDOWN, and more than OpenVPN makes of any push."""


class ManagementParser:
    """Cuts what the daemon sends into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._env: dict[str, str] = {}
        self._up = False

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now.

        Raises:
            ManagementError: a line without end, or an environment that is none. Use it no more.
        """
        self._rest += data
        *lines, last = bytes(self._rest).split(b"\n")
        self._rest = bytearray(last)
        if max(map(len, (*lines, last))) > MAX_LINE:
            raise ManagementError(f"OpenVPN sent a line of more than {MAX_LINE} bytes.")
        messages = []
        for line in lines:
            # The prompt for a management password has no line end; we set none, so it never comes.
            message = self._parse(visible_text(line.removesuffix(b"\r")))
            if message is not None:
                messages.append(message)
        return messages

    def _parse(self, line: str) -> Message | None:
        if line.startswith(">"):
            kind, _, rest = line[1:].partition(":")
            if kind == "UPDOWN":
                return self._up_down(rest)
            parse = _REAL_TIME.get(kind)
            return Unknown(kind=kind) if parse is None else parse(rest)
        if line.startswith("SUCCESS:"):
            return Success(text=line[8:].strip())
        if line.startswith("ERROR:"):
            return Failure(text=line[6:].strip())
        return End() if line == "END" else Body(text=line)

    def _up_down(self, rest: str) -> Message | None:
        if not rest.startswith("ENV,"):
            self._up, self._env = rest == "UP", {}
            return None
        pair = rest[4:]
        if pair == "END":
            env, self._env = self._env, {}
            return UpDown(up=self._up, env=env)
        name, _, value = pair.partition("=")
        self._env[name] = value
        if len(self._env) > MAX_ENV:
            raise ManagementError(f"OpenVPN sent an environment of more than {MAX_ENV} variables.")
        return None


def _number(text: str) -> int:
    """Its value, or 0 where the guest has written something else."""
    return int(text) if _NUMBER.fullmatch(text) else 0


def _state(rest: str) -> Message:
    fields = (*rest.split(",")[1:], *[""] * 8)
    return StateLine(
        name=fields[0],
        detail=fields[1],
        local_ip=fields[2],
        remote_ip=fields[3],
        remote_port=fields[4],
        local_ip6=fields[7],
    )


def _password(rest: str) -> Message:
    if rest.startswith("Auth-Token:"):
        return AuthToken()
    if match := _NEED.fullmatch(rest):
        static = _STATIC.fullmatch(match["rest"])
        return NeedPassword(
            realm=match["realm"],
            username=match["what"] == "username/password",
            challenge=static["text"] if static else None,
            echo=bool(static and _number(static["flags"]) & 1),
        )
    if match := _FAILED.fullmatch(rest):
        return _failed(match["realm"], match["said"] or "")
    if match := _FAILED_ALONE.fullmatch(rest):
        return _failed("Auth", match["said"])
    return Unknown(kind="PASSWORD")


def _failed(realm: str, said: str) -> Message:
    if said.startswith(CHALLENGE):
        return VerificationFailed(realm=realm, challenge=_dynamic(said))
    return VerificationFailed(realm=realm, said=said)


def _dynamic(said: str) -> DynamicChallenge | None:
    match = _CRV1.fullmatch(said)
    if match is None:
        return None
    flags = match["flags"].split(",")
    try:
        username = base64.b64decode(match["user"], validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        username = ""
    if not username.isprintable():
        username = ""
    return DynamicChallenge(
        state_id=match["id"],
        username=username,
        text=match["text"],
        echo="E" in flags,
        wants_answer="R" in flags,
    )


def _hold(rest: str) -> Message:
    return Hold(wait_s=_number(rest.rpartition(":")[2]))


def _log(rest: str) -> Message:
    _, _, behind = rest.partition(",")
    flags, _, text = behind.partition(",")
    return LogText(flags=flags, text=text)


def _bytes(rest: str) -> Message:
    received, _, sent = rest.partition(",")
    return ByteCount(received=_number(received), sent=_number(sent))


def _need_ok(kind: str) -> Callable[[str], Message]:
    def parse(rest: str) -> Message:
        match = _NEED_OK.fullmatch(rest)
        if match is None:
            return Unknown(kind=kind)
        return NeedOk(kind=kind, name=match["name"], text=match["text"])

    return parse


def _remote(rest: str) -> Message:
    host, port, proto = (*rest.split(","), "", "", "")[:3]
    return Remote(host=host, port=_number(port), proto=proto)


_REAL_TIME: Final[Mapping[str, Callable[[str], Message]]] = {
    "STATE": _state,
    "PASSWORD": _password,
    "HOLD": _hold,
    "LOG": _log,
    "BYTECOUNT": _bytes,
    "FATAL": lambda rest: Fatal(text=rest),
    "NEED-OK": _need_ok("NEED-OK"),
    "NEED-STR": _need_ok("NEED-STR"),
    "REMOTE": _remote,
    "INFO": lambda rest: InfoText(text=rest),
    "INFOMSG": lambda rest: InfoText(text=rest),
}


# --- commands --------------------------------------------------------------------------------


def quoted(value: str) -> str:
    """A word as OpenVPN reads it, whatever is in it ("Command Parsing").

    Raises:
        ValueError: it can't be said in one line, or is too long.
    """
    if any(character in value for character in "\r\n\0"):
        raise ValueError("It has a line end or a NUL in it.")
    if len(value.encode()) > MAX_VALUE:
        raise ValueError(f"It has more than {MAX_VALUE} bytes.")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def command(*words: str) -> bytes:
    """A command whose words need no quoting."""
    return f"{' '.join(words)}\n".encode()


def username(realm: str, value: str) -> bytes:
    """The answer to the first half of `NeedPassword`."""
    return command("username", quoted(realm), quoted(value))


def password(realm: str, value: str) -> bytes:
    """The answer to the second half, or to all of it."""
    return command("password", quoted(realm), quoted(value))


def static_response(secret: str, answer: str) -> str:
    """What is given for a password where there is a static challenge."""
    first, second = (base64.b64encode(text.encode()).decode() for text in (secret, answer))
    return f"SCRV1:{first}:{second}"


def dynamic_response(challenge: DynamicChallenge, answer: str) -> str:
    """What is given for a password after a dynamic challenge."""
    return f"CRV1::{challenge.state_id}::{answer}"
