"""`HostEnd`: the host's end of a connection, a non-blocking stream socket and what waits for it.

Every host-side program is reached through an AF_UNIX stream socket: in-process users hold the
other half of a socketpair, other processes one that they connected or accepted. The kernel's
buffers decouple both sides, so that bytes go from guest memory into a socket, and from a socket
into guest memory, by one system call and no copy of ours.

A socket that takes less than a packet leaves the rest in `backlog`, which credit bounds by the
connection's `buf_alloc`.
"""

from __future__ import annotations

import contextlib
import enum
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from microvm_devices.vsock.packet import cut

if TYPE_CHECKING:
    from microvm_devices.vsock.connection import VsockConnection
    from microvm_devices.vsock.dialing import Dialing

_IOV_MAX: Final = 1024
_NOSIGNAL: Final = socket.MSG_NOSIGNAL


class Pending(enum.IntFlag):
    """Control packets that a connection owes the guest; at most one of each."""

    NOTHING = 0
    REQUEST = enum.auto()
    RESPONSE = enum.auto()
    CREDIT_REQUEST = enum.auto()
    CREDIT_UPDATE = enum.auto()
    SHUTDOWN = enum.auto()


class HostEnd:
    """One connection as the muxer holds it: its state, its socket, and what is remembered."""

    __slots__ = (
        "backlog",
        "conn",
        "dialing",
        "ended",
        "finish",
        "finish_writing",
        "hung_up",
        "no_credit",
        "owed",
        "readable",
        "recv_into",
        "recvmsg_into",
        "send",
        "sendmsg",
        "sock",
    )

    def __init__(
        self, conn: VsockConnection, sock: socket.socket, dialing: Dialing | None = None
    ) -> None:
        sock.setblocking(False)
        # How far the guest may run ahead of the host's reader inside the kernel: a whole window,
        # so that the backlog stays empty for readers that keep up. The kernel doubles it for its
        # own overhead. What the host sends waits in the other half's buffer, which keeps the
        # system's default.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, conn.buf_alloc)
        self.conn = conn
        self.sock: socket.socket | None = sock
        """None when it has been closed."""
        self.dialing = dialing
        """Whoever waits for the guest's answer."""
        self.backlog = bytearray()
        """Bytes of the guest's that the socket would not take yet."""
        self.owed = Pending.NOTHING
        self.readable = False
        """An edge said so, and no read has found it empty since."""
        self.no_credit = False
        """The guest takes no more; it has been asked."""
        self.ended = False
        """The poller has reported END: reads go on until they return nothing."""
        self.hung_up = False
        self.finish = False
        """Close the socket when the backlog is empty."""
        self.finish_writing = False
        """End-of-file to the host when the backlog is empty."""
        # Bound once: each saves an attribute access a packet.
        self.send = sock.send
        self.sendmsg = sock.sendmsg
        self.recv_into = sock.recv_into
        self.recvmsg_into = sock.recvmsg_into

    def write(self, views: Sequence[memoryview], length: int) -> int:
        """Send `length` bytes to the host, and keep in the backlog what is not taken.

        Returns:
            How many the socket took.

        Raises:
            OSError: the host's end does not read any more; nothing was kept.
        """
        if self.backlog:
            taken = 0
        else:
            try:
                if len(views) == 1:
                    taken = self.send(views[0], _NOSIGNAL)
                else:
                    taken = self.sendmsg(views[:_IOV_MAX], (), _NOSIGNAL)
            except BlockingIOError:
                taken = 0
            if taken == length:
                return taken
        for view in cut(views, taken, length - taken):
            self.backlog += view
        return taken

    def flush(self) -> int:
        """Send what is in the backlog, and say how much of it the socket took.

        Raises:
            OSError: the host's end does not read any more.
        """
        try:
            taken = self.send(self.backlog, _NOSIGNAL)
        except BlockingIOError:
            return 0
        del self.backlog[:taken]
        return taken

    def shut(self, how: int) -> None:
        """End one direction of the socket (`socket.SHUT_RD` or `socket.SHUT_WR`)."""
        if self.sock is not None:
            # Where the other half is gone some systems say ENOTCONN; the poller says it better.
            with contextlib.suppress(OSError):
                self.sock.shutdown(how)

    def close(self) -> None:
        """Close the socket; what the backlog holds is lost."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
            self.backlog = bytearray()

    def read_into(self, views: Sequence[memoryview]) -> int:
        """Read from the host, as much as is there or fits; 0 at its end-of-file.

        Raises:
            BlockingIOError: there is nothing now.
            OSError: the host's end broke.
        """
        if len(views) == 1:
            return self.recv_into(views[0])
        return self.recvmsg_into(views[:_IOV_MAX])[0]
