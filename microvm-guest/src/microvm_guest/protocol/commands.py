"""One command's stream: what the agent may send on it, and when.

Each frame type is legal in some phases, and the phase changes with what is sent and received:

    REQUESTED  --STARTED-->  RUNNING  --EXIT-->  (gone)
        |                       |
        +--ERROR--> (gone)      |
        |                       |
        +------CLOSE sent-------+--> RELEASED  --EXIT or ERROR-->  (gone)

EXIT and ERROR are the last frame of their stream, so a stream that is gone is forgotten, and
whatever else comes on it is a violation. After CLOSE the agent may have sent anything before it
heard of it, and owes no more than the end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from types import MappingProxyType

import attrs

from microvm.errors import ConfigError
from microvm_guest.protocol.fields import (
    MAX_FIELD,
    NO_RUN_FLAGS,
    FieldTag,
    RunFlag,
    encode_field,
)
from microvm_guest.protocol.frames import (
    MAX_PAYLOAD,
    MAX_WINDOW,
    Channel,
    FrameType,
    ProtocolViolation,
)
from microvm_guest.protocol.jobs import DEFAULT_LOG_BYTES, MAX_LOG_BYTES, AttachRequest


class Phase(enum.Enum):
    """Where a command's stream stands."""

    REQUESTED = "requested"
    RUNNING = "running"
    RELEASED = "released"


LEGAL = MappingProxyType(
    {
        Phase.REQUESTED: frozenset({FrameType.STARTED, FrameType.ERROR}),
        Phase.RUNNING: frozenset(
            {
                FrameType.STDOUT,
                FrameType.STDERR,
                FrameType.WINDOW,
                FrameType.SKIPPED,
                FrameType.EXIT,
            }
        ),
        Phase.RELEASED: frozenset(
            {
                FrameType.STARTED,
                FrameType.ERROR,
                FrameType.STDOUT,
                FrameType.STDERR,
                FrameType.WINDOW,
                FrameType.SKIPPED,
                FrameType.EXIT,
            }
        ),
    }
)
"""What the agent may send in each phase."""


def _words(argv: Iterable[str]) -> tuple[str, ...]:
    if isinstance(argv, str):
        raise ConfigError(
            f"A command is a list of words, not the text {argv!r}.",
            remedy='Give ["sh", "-c", text] to have a shell read it.',
        )
    return tuple(argv)


@attrs.frozen(kw_only=True)
class RunRequest:
    """A command to run, as RUN carries it. See `microvm.abc.Guest.run` for the meanings.

    Raises:
        ConfigError: it can't be told to a guest: no program, a NUL byte, a name that is none,
            or more of it than a frame holds.
    """

    argv: tuple[str, ...] = attrs.field(converter=_words)
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None
    user: str | None = None
    tty: tuple[int, int] | None = None
    """Rows and columns, for a command with a terminal."""
    window: int = 512 * 1024
    """Bytes of each output that the agent may send before it is granted more."""
    flags: RunFlag = NO_RUN_FLAGS
    log_bytes: int = DEFAULT_LOG_BYTES
    """Of a job: how much of what it prints the agent keeps."""

    def __attrs_post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise ConfigError("A command needs a program to run.")
        names = [name for name, _ in self.env]
        texts = [*self.argv, *names, *(value for _, value in self.env)]
        texts += [text for text in (self.cwd, self.user) if text is not None]
        if any("\0" in text for text in texts):
            raise ConfigError("A command's arguments and environment can't hold NUL bytes.")
        if any(not name or "=" in name for name in names):
            raise ConfigError("An environment variable's name can't be empty or hold '='.")
        if self.cwd == "" or self.user == "":
            raise ConfigError("A command's directory and user can't be empty; None is the default.")
        if self.tty is not None and not all(0 <= cells <= MAX_FIELD for cells in self.tty):
            raise ConfigError(
                f"A terminal can't have {self.tty[0]} rows and {self.tty[1]} columns."
            )
        if not 1 <= self.log_bytes <= MAX_LOG_BYTES:
            raise ConfigError(f"A job's log has 1 to {MAX_LOG_BYTES} bytes.")
        size = sum(4 + len(text.encode("utf-8", "surrogateescape")) for text in texts) + 64
        if size > MAX_PAYLOAD:
            raise ConfigError(
                f"The command's arguments and environment are {size} bytes; a request has room "
                f"for {MAX_PAYLOAD}.",
                remedy="Pass what is large on stdin.",
            )

    def encode(self, wall_time_ns: int) -> bytes:
        """The RUN's payload."""
        parts = [encode_field(FieldTag.ARG, arg) for arg in self.argv]
        parts += [encode_field(FieldTag.ENV, f"{name}={value}") for name, value in self.env]
        if self.cwd is not None:
            parts.append(encode_field(FieldTag.CWD, self.cwd))
        if self.user is not None:
            parts.append(encode_field(FieldTag.USER, self.user))
        if self.tty is not None:
            rows, cols = self.tty
            size = rows.to_bytes(2, "little") + cols.to_bytes(2, "little")
            parts.append(encode_field(FieldTag.TTY, size))
        parts.append(encode_field(FieldTag.WINDOW, self.window))
        parts.append(encode_field(FieldTag.RUN_FLAGS, self.flags))
        if RunFlag.DETACH in self.flags:
            parts.append(encode_field(FieldTag.LOG_BYTES, self.log_bytes))
        parts.append(encode_field(FieldTag.WALL_TIME, wall_time_ns))
        return b"".join(parts)


class CommandStream:
    """The host's account of one stream: its phase, and who may still send how much."""

    def __init__(self, request: RunRequest | AttachRequest) -> None:
        self.is_job = isinstance(request, AttachRequest) or RunFlag.DETACH in request.flags
        self.phase = Phase.REQUESTED
        self.stdin_open = RunFlag.NO_STDIN not in request.flags
        self.stdin_sent = 0
        self.stdin_granted = 0
        merged = request.tty is not None or RunFlag.MERGE in request.flags
        self._windows = {Channel.STDOUT: request.window}
        if not merged:
            self._windows[Channel.STDERR] = request.window
        """Open outputs only."""

    def check(self, kind: FrameType) -> None:
        """Hold a frame against `LEGAL`."""
        if kind not in LEGAL[self.phase] or (kind is FrameType.SKIPPED and not self.is_job):
            raise ProtocolViolation(f"a {kind.name} frame for a command that is {self.phase.value}")
        if kind is FrameType.EXIT and self.phase is Phase.RUNNING and self._windows:
            raise ProtocolViolation("an EXIT frame before the end of the command's output")

    def started(self) -> None:
        """STARTED has come."""
        if self.phase is Phase.REQUESTED:
            self.phase = Phase.RUNNING

    def output(self, channel: Channel, length: int, eof: bool) -> None:
        """Output has come: within its window, and not after its end."""
        window = self._windows.get(channel)
        if window is None:
            raise ProtocolViolation(f"{channel.name} after its end")
        if not length and not eof:
            raise ProtocolViolation(f"{channel.name} of no bytes")
        if length > window:
            raise ProtocolViolation(f"more {channel.name} than the window allows")
        if eof:
            del self._windows[channel]
        else:
            self._windows[channel] = window - length

    def grant(self, channel: Channel, length: int) -> bool:
        """Allow more output; whether the agent still wants to know."""
        if channel not in self._windows or self.phase is Phase.RELEASED:
            return False
        self._windows[channel] += length
        assert self._windows[channel] <= MAX_WINDOW
        return True

    def stdin_taken(self, length: int, closed: bool) -> None:
        """The agent reports what the command has read: never more than it was sent."""
        self.stdin_granted += length
        if self.stdin_granted > self.stdin_sent:
            raise ProtocolViolation("a WINDOW frame for stdin that was never sent")
        if closed:
            self.stdin_open = False
