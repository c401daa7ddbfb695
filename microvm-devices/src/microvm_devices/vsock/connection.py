"""One vsock connection: what may happen when, and how much may be sent. No IO, no clock.

A connection has two ends: the guest's, which speaks in packets, and the host's, which is a
stream socket. This file knows neither; it is told what happened (`Event`), and answers with what
is to be done about it (`Action`). All that changes a connection's state stands in `TRANSITIONS`.

Theory of operation. Bytes flow in two directions, and each ends by itself, for good:

* to the guest: ended by the host's end-of-file, of which the guest hears SHUTDOWN(SEND), or by
  the guest's SHUTDOWN(RECEIVE);
* to the host: ended by the guest's SHUTDOWN(SEND), or by the host's reader going away, of which
  the guest hears SHUTDOWN(RECEIVE).

The states after OPEN are called by the direction that still flows: TO_GUEST, TO_HOST. When both
have ended, whoever said the last SHUTDOWN waits for the other's RST (virtio 1.2, 5.10.6.5). When
that was the guest, we answer and are CLOSED; when it was us, we are LINGERING, and the muxer
bounds that with `SHUTDOWN_TIMEOUT_S`.

Being closed towards the guest does not mean that the host has read everything: FINISH lets the
host's end go on until it has, CLOSE does not. The rule is that bytes sent before an orderly end
are all delivered. Therefore RST in OPEN or TO_HOST discards (the guest was not done), while in
TO_GUEST and LINGERING it does not: there the guest has said before that it was done sending, and
Linux confirms the end of a connection by RST.

What is awkward: a guest may send after it was told not to, since its packets cross ours, so data
for a direction that has ended is dropped without a word. A second REQUEST for a live connection
is refused by the muxer and not shown to the connection, which it must not harm.

Credit (5.10.6.3 Buffer Space Management). Counters are free-running modulo 2^32. `fwd_cnt` counts
bytes that went into the host's socket, not those that were received, so that what is kept in
between is bounded by `buf_alloc`. A peer that shrinks its `buf_alloc` or moves its `fwd_cnt` to
nonsense gets nothing more to read; it hurts nobody else.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from microvm_devices.vsock.packet import Shutdown

_U32: Final = 0xFFFF_FFFF


class State(enum.Enum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    """The host has asked; the guest has not answered."""
    OPEN = "open"
    TO_GUEST = "to guest"
    """Only bytes from host to guest flow."""
    TO_HOST = "to host"
    """Only bytes from guest to host flow."""
    LINGERING = "lingering"
    """Both directions have ended and the guest knows; its RST is awaited."""
    CLOSED = "closed"


class Event(enum.Enum):
    """What can happen to a connection."""

    RESPONSE = "RESPONSE"
    RST = "RST"
    SHUTDOWN_RECEIVE = "SHUTDOWN(RECEIVE)"
    SHUTDOWN_SEND = "SHUTDOWN(SEND)"
    SHUTDOWN_BOTH = "SHUTDOWN(RECEIVE, SEND)"
    CREDIT_REQUEST = "CREDIT_REQUEST"
    VIOLATION = "violation"
    """The guest sent what it may not: over its credit, longer than its buffers, out of turn."""
    HOST_EOF = "host end-of-file"
    """The host sends no more, and all it sent has gone to the guest."""
    HOST_DEAF = "host stopped reading"
    HOST_GONE = "host closed"
    """HOST_EOF and HOST_DEAF at once."""
    HOST_RESET = "host reset"
    """The host's end broke, or was closed with bytes of the guest unread."""
    EXPIRED = "expired"
    """The guest was waited for long enough."""


class Action(enum.IntFlag):
    """What is to be done. Several may be asked for at once."""

    NOTHING = 0
    ESTABLISH = enum.auto()
    """The guest has accepted: tell who asked, and let bytes flow."""
    REFUSE = enum.auto()
    """The guest has refused: tell who asked."""
    SEND_RST = enum.auto()
    SEND_SHUTDOWN = enum.auto()
    """With `VsockConnection.shutdown` as its flags."""
    SEND_CREDIT = enum.auto()
    STOP_READING = enum.auto()
    """Read no more from the host's socket, and let its writer know."""
    FINISH_WRITING = enum.auto()
    """When the host's socket has taken what is kept for it: end-of-file to the host."""
    FINISH = enum.auto()
    """When the host's socket has taken what is kept for it: close it."""
    CLOSE = enum.auto()
    """Close the host's socket now."""
    DISCARD = enum.auto()
    """Throw away what is kept for the host's socket."""


_Row = Mapping[Event, tuple[State, Action]]

_ABORT: Final = (State.CLOSED, Action.SEND_RST | Action.CLOSE)
_CONFIRM: Final = (State.CLOSED, Action.SEND_RST | Action.FINISH)
_REFUSED: Final = (State.CLOSED, Action.REFUSE | Action.CLOSE)
_REFUSED_BADLY: Final = (State.CLOSED, Action.REFUSE | Action.CLOSE | Action.SEND_RST)

TRANSITIONS: Final[Mapping[State, _Row]] = MappingProxyType(
    {
        State.CONNECTING: {
            Event.RESPONSE: (State.OPEN, Action.ESTABLISH),
            Event.RST: _REFUSED,
            Event.SHUTDOWN_RECEIVE: _REFUSED_BADLY,
            Event.SHUTDOWN_SEND: _REFUSED_BADLY,
            Event.SHUTDOWN_BOTH: _REFUSED_BADLY,
            Event.CREDIT_REQUEST: _REFUSED_BADLY,
            Event.VIOLATION: _REFUSED_BADLY,
            # No RST: a guest that has not seen the request yet has no such connection, and one
            # that answers it will get the RST that any answer to nothing gets.
            Event.HOST_GONE: (State.CLOSED, Action.CLOSE),
        },
        State.OPEN: {
            Event.RESPONSE: _ABORT,
            Event.RST: (State.CLOSED, Action.CLOSE),
            Event.SHUTDOWN_RECEIVE: (State.TO_HOST, Action.STOP_READING),
            Event.SHUTDOWN_SEND: (State.TO_GUEST, Action.FINISH_WRITING),
            Event.SHUTDOWN_BOTH: _CONFIRM,
            Event.CREDIT_REQUEST: (State.OPEN, Action.SEND_CREDIT),
            Event.VIOLATION: _ABORT,
            Event.HOST_EOF: (State.TO_HOST, Action.SEND_SHUTDOWN),
            Event.HOST_DEAF: (State.TO_GUEST, Action.SEND_SHUTDOWN | Action.DISCARD),
            Event.HOST_GONE: (State.LINGERING, Action.SEND_SHUTDOWN | Action.CLOSE),
            Event.HOST_RESET: _ABORT,
        },
        State.TO_GUEST: {
            Event.RESPONSE: _ABORT,
            Event.RST: (State.CLOSED, Action.FINISH),
            Event.SHUTDOWN_RECEIVE: _CONFIRM,
            Event.SHUTDOWN_BOTH: _CONFIRM,
            Event.CREDIT_REQUEST: (State.TO_GUEST, Action.SEND_CREDIT),
            Event.VIOLATION: _ABORT,
            Event.HOST_EOF: (State.LINGERING, Action.SEND_SHUTDOWN | Action.FINISH),
            Event.HOST_DEAF: (State.TO_GUEST, Action.DISCARD),
            Event.HOST_GONE: (State.LINGERING, Action.SEND_SHUTDOWN | Action.CLOSE),
            Event.HOST_RESET: _ABORT,
        },
        State.TO_HOST: {
            Event.RESPONSE: _ABORT,
            Event.RST: (State.CLOSED, Action.CLOSE),
            Event.SHUTDOWN_SEND: _CONFIRM,
            Event.SHUTDOWN_BOTH: _CONFIRM,
            Event.CREDIT_REQUEST: (State.TO_HOST, Action.SEND_CREDIT),
            Event.VIOLATION: _ABORT,
            Event.HOST_DEAF: (State.LINGERING, Action.SEND_SHUTDOWN | Action.CLOSE),
            Event.HOST_GONE: (State.LINGERING, Action.SEND_SHUTDOWN | Action.CLOSE),
            Event.HOST_RESET: _ABORT,
        },
        State.LINGERING: {
            Event.RESPONSE: _CONFIRM,
            Event.RST: (State.CLOSED, Action.FINISH),
            Event.SHUTDOWN_BOTH: _CONFIRM,
            Event.VIOLATION: _CONFIRM,
            Event.HOST_DEAF: (State.LINGERING, Action.CLOSE),
            Event.HOST_RESET: (State.LINGERING, Action.CLOSE),
            Event.EXPIRED: _CONFIRM,
        },
        State.CLOSED: {
            Event.HOST_DEAF: (State.CLOSED, Action.CLOSE),
            Event.HOST_RESET: (State.CLOSED, Action.CLOSE),
        },
    }
)
"""What is not in a row changes nothing and asks for nothing."""

_TOLD: Final[Mapping[Event, Shutdown]] = MappingProxyType(
    {Event.HOST_EOF: Shutdown.SEND, Event.HOST_DEAF: Shutdown.RECEIVE}
)

_SHUTDOWN_EVENTS: Final = (
    None,
    Event.SHUTDOWN_RECEIVE,
    Event.SHUTDOWN_SEND,
    Event.SHUTDOWN_BOTH,
)


def shutdown_event(flags: int) -> Event | None:
    """The event that a SHUTDOWN packet's flags mean; None for one that says nothing."""
    return _SHUTDOWN_EVENTS[flags & Shutdown.BOTH]


class VsockConnection:
    """The state and the credit of one connection.

    Args:
        host_port: The host's port.
        guest_port: The guest's port.
        buf_alloc: How many bytes of the guest's we are ready to keep.
        state: CONNECTING when the host asks, OPEN when it accepts what the guest asked.
        peer_buf_alloc: What the guest's REQUEST said of its own; the first answer sets it else.
        peer_fwd_cnt: Likewise.
    """

    __slots__ = (
        "buf_alloc",
        "fwd_cnt",
        "guest_port",
        "host_port",
        "key",
        "peer_buf_alloc",
        "peer_fwd_cnt",
        "reads_host",
        "rx_cnt",
        "shutdown",
        "state",
        "takes_data",
        "told_fwd_cnt",
        "tx_cnt",
    )

    def __init__(
        self,
        *,
        host_port: int,
        guest_port: int,
        buf_alloc: int,
        state: State = State.CONNECTING,
        peer_buf_alloc: int = 0,
        peer_fwd_cnt: int = 0,
    ) -> None:
        self.host_port = host_port
        self.guest_port = guest_port
        self.key = connection_key(host_port, guest_port)
        self.shutdown = Shutdown(0)
        """What the guest was told that we will not do any more."""
        # To the guest:
        self.tx_cnt = 0
        """Bytes sent to the guest."""
        self.peer_buf_alloc = peer_buf_alloc
        self.peer_fwd_cnt = peer_fwd_cnt
        # From the guest:
        self.buf_alloc = buf_alloc
        self.rx_cnt = 0
        """Bytes received from the guest."""
        self.fwd_cnt = 0
        """Those of them that went into the host's socket."""
        self.told_fwd_cnt = 0
        """The `fwd_cnt` of the last packet that went to the guest."""
        self._enter(state)

    def __str__(self) -> str:
        return f"{self.host_port}:{self.guest_port}"

    def _enter(self, state: State) -> None:
        self.state = state
        self.reads_host = state is State.OPEN or state is State.TO_GUEST
        self.takes_data = state is State.OPEN or state is State.TO_HOST

    def handle(self, event: Event) -> Action:
        """Take an event, change the state, and say what is to be done."""
        row = TRANSITIONS[self.state].get(event)
        if row is None:
            return Action.NOTHING
        state, action = row
        self._enter(state)
        if action & Action.SEND_SHUTDOWN:
            lingers = state is State.LINGERING
            self.shutdown |= Shutdown.BOTH if lingers else _TOLD[event]
        return action

    # --- credit --------------------------------------------------------------------------

    def peer_free(self) -> int:
        """How many bytes the guest is ready to take."""
        free = self.peer_buf_alloc - ((self.tx_cnt - self.peer_fwd_cnt) & _U32)
        return free if free > 0 else 0

    def sent(self, length: int) -> None:
        """Count bytes that go to the guest, in a packet that also tells it our `fwd_cnt`."""
        self.tx_cnt = (self.tx_cnt + length) & _U32
        self.told_fwd_cnt = self.fwd_cnt

    def free(self) -> int:
        """How many bytes the guest may still send."""
        return self.buf_alloc - ((self.rx_cnt - self.fwd_cnt) & _U32)

    def received(self, length: int) -> None:
        """Count bytes that came from the guest."""
        self.rx_cnt = (self.rx_cnt + length) & _U32

    def flushed(self, length: int) -> bool:
        """Count bytes that went into the host's socket.

        Returns:
            Whether the guest is to hear of it: less than half of its window is free in its
            eyes. Telling it more often costs packets, less often lets it stand still. The window
            is not `buf_alloc` alone: Linux sends no further ahead than its own socket's buffer
            either (since 2026, and in the stable series), so that by our half alone a guest with
            a small buffer would wait for ever.
        """
        self.fwd_cnt = (self.fwd_cnt + length) & _U32
        window = min(self.buf_alloc, self.peer_buf_alloc)
        return ((self.rx_cnt - self.told_fwd_cnt) & _U32) << 1 > window


def connection_key(host_port: int, guest_port: int) -> int:
    """What identifies a connection of one guest: both ports in one integer."""
    return host_port << 32 | guest_port
