"""`DatagramLink`: one frame a datagram."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final

import trio

from microvm.abc import Frame, NetLink
from microvm.errors import NetLinkDown

_LOST: Final = (errno.EMSGSIZE, errno.ENOBUFS)
"""That frame can't be sent now or ever: as on any cable, it is lost."""


class DatagramLink(NetLink):
    """One end of the socket.

    Args:
        sock: Connected and non-blocking; stays its owner's to close.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`."""
        taken = 0
        for frame in frames:
            try:
                self._sock.sendmsg(frame)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in _LOST:
                    raise _gone(error) from error
            taken += 1
        return taken

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`."""
        try:
            return self._sock.recvmsg_into(buffers)[0]
        except BlockingIOError:
            return None
        except OSError as error:
            raise _gone(error) from error

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        await trio.lowlevel.wait_readable(self._sock)

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        await trio.lowlevel.wait_writable(self._sock)


def _gone(error: OSError) -> NetLinkDown:
    return NetLinkDown(f"The other end is gone: {error.strerror}.")
