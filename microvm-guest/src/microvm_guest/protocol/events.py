"""What can come from an agent, as values. `AgentConnection.next_event` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from microvm_guest.protocol.frames import Channel, Notice
    from microvm_guest.protocol.jobs import JobRecord


class NeedData:
    """The type of `NEED_DATA`."""

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA = NeedData()
"""No event until more bytes come: feed some."""


@attrs.frozen(kw_only=True)
class HelloReceived:
    """The agent's greeting, the first event of a connection."""

    major: int
    minor: int
    build: str
    """Names the agent's sources."""
    kernel: str
    """The guest kernel's release."""
    boot_ns: int
    """The guest's monotonic clock when it said so: how long the boot took, seen from inside."""
    stdin_window: int
    """Bytes of stdin that each command may be sent before it has read any."""
    max_commands: int


@attrs.frozen(kw_only=True)
class PongReceived:
    """The answer to a PING."""

    token: int


@attrs.frozen(kw_only=True)
class StatusReceived:
    """The answer to a STATUS. Answers come in the order of the questions."""

    status: Mapping[str, int | float | str]


@attrs.frozen(kw_only=True)
class JobsReceived:
    """The answer to a JOBS: every job that the agent keeps. Answers come in order."""

    jobs: tuple[JobRecord, ...]


@attrs.frozen(kw_only=True)
class NoticeTaken:
    """The agent has done what a NOTICE is for."""

    notice: Notice


@attrs.frozen(kw_only=True)
class OutputSkipped:
    """Bytes of a job's output that its log no longer had; what comes next is behind them."""

    stream: int
    length: int


@attrs.frozen(kw_only=True)
class ShutdownAgreed:
    """The guest is going down: nothing more will be started."""


@attrs.frozen(kw_only=True)
class ConnectionRefused:
    """The agent ends the connection; no event follows."""

    error: int
    """An `ErrorCode`, or a number that a later version has added."""
    text: str


@attrs.frozen(kw_only=True)
class CommandStarted:
    """The program runs."""

    stream: int
    pid: int


@attrs.frozen(kw_only=True)
class CommandRefused:
    """The command could not be started: the last event of its stream."""

    stream: int
    error: int
    text: str


@attrs.frozen(kw_only=True)
class OutputReceived:
    """Bytes that the command has printed."""

    stream: int
    channel: Channel
    data: bytes
    eof: bool
    """Nothing more will come of this channel."""


@attrs.frozen(kw_only=True)
class StdinReady:
    """The command has read: more may be sent. Or it has closed its stdin: nothing can be."""

    stream: int
    closed: bool


@attrs.frozen(kw_only=True)
class CommandExited:
    """The command has ended: the last event of its stream."""

    stream: int
    exit_code: int | None
    signal: int | None


Event = (
    HelloReceived
    | PongReceived
    | StatusReceived
    | JobsReceived
    | NoticeTaken
    | ShutdownAgreed
    | ConnectionRefused
    | CommandStarted
    | CommandRefused
    | OutputReceived
    | OutputSkipped
    | StdinReady
    | CommandExited
)
