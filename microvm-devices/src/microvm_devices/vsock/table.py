"""`ConnectionTable`: every connection that lives, and what is to be done for each.

Synchronous, and on the trio thread alone. The queues' side (`guest_queues`) and the host's side
(`muxer`) tell a connection what happened and pass what its state machine answers to `apply`.
What that leaves for the guest stands in three queues, which `GuestQueues.fill_rx` empties:

* `rsts`: owed to packets that belong to no connection any more;
* `owing`: connections that owe control packets, each there once, whatever it owes;
* `ready`: connections whose socket can be read and whose guest takes more.

The last two are dicts for their order and so that a connection which the guest forgets leaves
them at once: a guest that gives no RX buffers would fill them with its dead.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from microvm_devices.vsock import limits
from microvm_devices.vsock.connection import Action, Event, State, VsockConnection, connection_key
from microvm_devices.vsock.dialing import Answer, Dialing
from microvm_devices.vsock.endpoint import HostEnd, Pending
from microvm_devices.vsock.packet import VIRTIO_VSOCK_TYPE_STREAM
from microvm_devices.vsock.poller import END, ERR, HUP, IN, OUT

if TYPE_CHECKING:
    from microvm_devices.vsock.poller import HostPoller

log = logging.getLogger(__name__)

_READABLE: Final = IN | END | HUP | ERR


class ConnectionTable:
    """The connections of one guest."""

    def __init__(self) -> None:
        self.poller: HostPoller | None = None
        """Set while the machine lives."""
        self.ends: dict[int, HostEnd] = {}
        """By connection key; those that the guest can speak to."""
        self.rsts: deque[tuple[int, int, int]] = deque()
        """Guest port, host port, type."""
        self.owing: dict[HostEnd, None] = {}
        self.ready: dict[HostEnd, None] = {}
        self.lingering: dict[HostEnd, float] = {}
        """With the time at which each expires, the soonest first."""
        self.somebody_lingers = trio.Event()
        self._by_fd: dict[int, HostEnd] = {}
        self._alive: set[HostEnd] = set()
        self._full_windows = 0
        self._next_host_port = limits.FIRST_HOST_PORT

    def __len__(self) -> int:
        """All that live: also those which only the host's side is not done with."""
        return len(self._alive)

    @property
    def is_full(self) -> bool:
        """Whether no more can be opened."""
        return len(self._alive) >= limits.MAX_CONNECTIONS

    # --- begin and end -------------------------------------------------------------------

    def open_to_guest(self, sock: socket.socket, guest_port: int, dialing: Dialing) -> HostEnd:
        """A connection that the host asks for; it owes the guest a REQUEST. See `is_full`."""
        host_port = self._free_host_port(guest_port)
        end = self._open(sock, host_port, guest_port, dialing=dialing)
        self.owe(end, Pending.REQUEST)
        return end

    def open_to_host(
        self, sock: socket.socket, host_port: int, guest_port: int, buf_alloc: int, fwd_cnt: int
    ) -> HostEnd:
        """A connection that the guest asked for; it owes the guest a RESPONSE. See `is_full`."""
        end = self._open(sock, host_port, guest_port, buf_alloc=buf_alloc, fwd_cnt=fwd_cnt)
        self.owe(end, Pending.RESPONSE)
        self._watch(end)
        return end

    def _open(
        self,
        sock: socket.socket,
        host_port: int,
        guest_port: int,
        *,
        dialing: Dialing | None = None,
        buf_alloc: int = 0,
        fwd_cnt: int = 0,
    ) -> HostEnd:
        full = self._full_windows < limits.FULL_WINDOWS
        conn = VsockConnection(
            host_port=host_port,
            guest_port=guest_port,
            buf_alloc=limits.BUF_ALLOC if full else limits.SMALL_BUF_ALLOC,
            state=State.OPEN if dialing is None else State.CONNECTING,
            peer_buf_alloc=buf_alloc,
            peer_fwd_cnt=fwd_cnt,
        )
        end = HostEnd(conn, sock, dialing)
        self._full_windows += full
        self._alive.add(end)
        self.ends[conn.key] = end
        return end

    def _free_host_port(self, guest_port: int) -> int:
        while True:
            port = self._next_host_port
            last = port == limits.LAST_HOST_PORT
            self._next_host_port = limits.FIRST_HOST_PORT if last else port + 1
            if connection_key(port, guest_port) not in self.ends:
                return port

    def guest_forgot(self) -> None:
        """The driver has reset the device: for each connection as if the guest had sent an RST."""
        for end in list(self.ends.values()):
            if end.dialing is not None:
                end.dialing.resolve(Answer.RESET)
            self.tell(end, Event.RST)
        self.rsts.clear()
        self.owing.clear()
        self.ready.clear()

    def close_all(self) -> None:
        """The machine has ended: close what is left, read by its program or not."""
        self.guest_forgot()
        for end in list(self._alive):
            self._close(end)

    def expire(self, now: float) -> float | None:
        """Let go of whom the guest has left lingering until now; say when the next one is due."""
        while self.lingering:
            end, deadline = next(iter(self.lingering.items()))
            if now < deadline:
                return deadline
            self.tell(end, Event.EXPIRED)
        self.somebody_lingers = trio.Event()
        return None

    # --- what happened -------------------------------------------------------------------

    def tell(self, end: HostEnd, event: Event) -> None:
        """Let a connection take an event, and do what it asks for."""
        conn = end.conn
        action = conn.handle(event)
        if conn.state is State.CLOSED:
            self._forget(end)
        if action & Action.SEND_RST:
            self.rsts.append((conn.guest_port, conn.host_port, VIRTIO_VSOCK_TYPE_STREAM))
        if action & Action.ESTABLISH:
            self._establish(end)
        if action & Action.REFUSE and end.dialing is not None:
            end.dialing.resolve(Answer.REFUSED)
        if action & Action.SEND_CREDIT:
            self.owe(end, Pending.CREDIT_UPDATE)
        if action & Action.SEND_SHUTDOWN:
            self.owe(end, Pending.SHUTDOWN)
            if conn.state is State.LINGERING:
                self.lingering[end] = trio.current_time() + limits.SHUTDOWN_TIMEOUT_S
                self.somebody_lingers.set()
        if action & Action.CLOSE:
            self._close(end)
            return
        if action & Action.DISCARD:
            end.backlog.clear()
        if action & Action.STOP_READING:
            end.shut(socket.SHUT_RD)
        if action & Action.FINISH_WRITING:
            end.finish_writing = True
        if action & Action.FINISH:
            end.finish = True
        if not end.backlog:
            self._written(end)

    def take_edges(self, edges: list[tuple[int, int]]) -> None:
        """What the poller has reported of the host's sockets."""
        for fd, flags in edges:
            end = self._by_fd.get(fd)
            if end is None:
                continue
            if flags & (END | HUP | ERR):
                end.ended = True
            if flags & HUP:
                end.hung_up = True
            if flags & _READABLE:
                end.readable = True
                self.want_read(end)
            if end.backlog and flags & (OUT | HUP | ERR):
                self._flush(end)
            if end.hung_up and end.conn.state is State.TO_HOST:
                self.tell(end, Event.HOST_DEAF)

    def credit_came(self, end: HostEnd) -> None:
        """The guest takes more, for a connection that had waited for it."""
        end.no_credit = False
        self.want_read(end)

    def backlog_began(self, end: HostEnd) -> None:
        """The socket would not take all: go on when it can."""
        if end.sock is not None and self.poller is not None:
            self.poller.watch_writing(end.sock, True)

    # --- what is to be done for the guest ------------------------------------------------

    def owe(self, end: HostEnd, what: Pending) -> None:
        """The guest is to get a control packet."""
        self.owing[end] = None
        end.owed |= what

    def want_read(self, end: HostEnd) -> None:
        """The socket is to be read, if that is of use."""
        if end.readable and not end.no_credit and end.conn.reads_host:
            self.ready.setdefault(end)

    # --- sockets -------------------------------------------------------------------------

    def _establish(self, end: HostEnd) -> None:
        dialing = end.dialing
        assert dialing is not None
        dialing.resolve(Answer.ACCEPTED)
        if dialing.greet:
            try:
                # It fits: nothing was sent over this socket before.
                end.send(b"OK %d\n" % end.conn.host_port, socket.MSG_NOSIGNAL)
            except OSError:
                self.tell(end, Event.HOST_DEAF)
        self._watch(end)

    def _watch(self, end: HostEnd) -> None:
        assert self.poller is not None
        assert end.sock is not None
        self._by_fd[end.sock.fileno()] = end
        self.poller.add(end.sock)

    def _flush(self, end: HostEnd) -> None:
        conn = end.conn
        try:
            taken = end.flush()
        except OSError:
            self.tell(end, Event.HOST_DEAF)
            return
        if taken and conn.flushed(taken) and conn.takes_data:
            self.owe(end, Pending.CREDIT_UPDATE)
        if not end.backlog:
            if end.sock is not None and self.poller is not None:
                self.poller.watch_writing(end.sock, False)
            self._written(end)

    def _written(self, end: HostEnd) -> None:
        """The backlog is empty: do what waited for that."""
        if end.finish:
            self._close(end)
        elif end.finish_writing:
            end.finish_writing = False
            end.shut(socket.SHUT_WR)

    def _forget(self, end: HostEnd) -> None:
        """The guest can't speak of it any more."""
        key = end.conn.key
        if self.ends.get(key) is end:
            del self.ends[key]
        self.lingering.pop(end, None)
        self.owing.pop(end, None)
        self.ready.pop(end, None)
        end.owed = Pending.NOTHING
        if end.sock is None:
            self._bury(end)

    def _close(self, end: HostEnd) -> None:
        """Close the host's socket; what waits for it is lost."""
        sock = end.sock
        if sock is None:
            return
        if self._by_fd.pop(sock.fileno(), None) is not None and self.poller is not None:
            self.poller.remove(sock)
        end.close()
        if end.conn.state is State.CLOSED:
            self._bury(end)

    def _bury(self, end: HostEnd) -> None:
        if end in self._alive:
            self._alive.discard(end)
            self._full_windows -= end.conn.buf_alloc == limits.BUF_ALLOC
