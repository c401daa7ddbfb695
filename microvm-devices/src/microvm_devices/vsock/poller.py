"""Readiness of many sockets, waited for at one place: an epoll instance, edge-triggered.

One descriptor to wait for, whatever the number of connections, and no call to the kernel when a
connection starts or stops being of interest: an edge is reported once, and remembered by whoever
got it. That is also what keeps a guest without receive buffers from costing anything (a level
that nobody acts upon would be reported again and again).
"""

from __future__ import annotations

import select
import socket
from typing import Final

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
END: Final = select.EPOLLRDHUP
"""The peer sends no more."""
HUP: Final = select.EPOLLHUP
"""The peer neither sends nor reads any more."""
ERR: Final = select.EPOLLERR

_READ: Final = IN | END | select.EPOLLET
_BATCH: Final = 256


class HostPoller:
    """Watches sockets, always for reading, and for writing when asked."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """Readable when `poll` has something."""
        return self._epoll.fileno()

    def add(self, sock: socket.socket) -> None:
        """Watch a socket; if it is readable now, that is an edge."""
        self._epoll.register(sock, _READ)

    def watch_writing(self, sock: socket.socket, wanted: bool) -> None:
        """Report also when the socket can be written; if it can now, that is an edge."""
        self._epoll.modify(sock, _READ | OUT if wanted else _READ)

    def remove(self, sock: socket.socket) -> None:
        """Watch it no more. To be called before it is closed: a forked child may hold it open."""
        self._epoll.unregister(sock)

    def poll(self) -> list[tuple[int, int]]:
        """Edges since the last call, as file descriptor and flags: at most a batch of them."""
        return self._epoll.poll(0, _BATCH)

    def close(self) -> None:
        """Watch nothing any more."""
        self._epoll.close()
