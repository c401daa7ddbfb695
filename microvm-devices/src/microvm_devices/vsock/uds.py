r"""`UdsMux`: guest ports for other processes, by AF_UNIX sockets as Firecracker's users know them.

Host to guest: connect to ``uds_path``, say ``CONNECT <port>\n``, read ``OK <host port>\n``, and
the rest is the stream. Guest to host: whoever listens at ``<uds_path>_<port>`` gets what the
guest sends to that port of the host's. The socket of the client becomes the host's end of the
connection itself, so that no byte passes through here.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import GuestError
from microvm.unix_sockets import BoundSocket, SocketDirectory, is_trusted, peer_uid
from microvm_devices.vsock import limits
from microvm_devices.vsock.handshake import MAX_LINE_BYTES, BadConnectLine, ConnectLine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    DialGuest = Callable[[socket.socket, int], Awaitable[object]]

log = logging.getLogger(__name__)

_OUT_OF_SOCKETS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_S: Final = 0.1


class UdsMux:
    """The AF_UNIX sockets of one machine.

    Args:
        path: ``uds_path``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory: SocketDirectory | None = None
        self._bound: BoundSocket | None = None
        self._unnamed: dict[trio.CancelScope, None] = {}
        """Of clients that have not said their port, the oldest first."""

    @asynccontextmanager
    async def bound(self) -> AsyncIterator[None]:
        """Listen at the path within the block; the path is removed behind it.

        Raises:
            ConfigError: the path can't be used.
        """
        directory = SocketDirectory(self._path.parent, "uds_path")
        try:
            # The longest name must be sayable too, before anyone needs it.
            directory.address(f"{self._path.name}_{limits.MAX_PORT}")
            bound = await directory.listen(self._path.name, limits.LISTEN_BACKLOG)
            self._directory, self._bound = directory, bound
            try:
                yield
            finally:
                self._directory = self._bound = None
                bound.close()
        finally:
            directory.close()

    def dial_host(self, port: int) -> socket.socket | None:
        """A socket to whoever serves a port of the host's; None if nobody does."""
        if self._directory is None:
            return None
        return self._directory.connect(f"{self._path.name}_{port}")

    async def serve(self, dial_guest: DialGuest) -> None:
        """Take clients until cancelled. To be called within `bound`.

        Args:
            dial_guest: Connects a socket, which it then owns, to a guest port.
        """
        assert self._bound is not None
        listener = self._bound.sock
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    sock, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno in _OUT_OF_SOCKETS:
                        log.warning("no client can be accepted: %s", error.strerror)
                        await trio.sleep(_RETRY_S)
                    continue
                nursery.start_soon(self._serve_client, sock, dial_guest)

    async def _serve_client(self, sock: socket.socket, dial_guest: DialGuest) -> None:
        try:
            sock.setblocking(False)
            port = await self._read_line(sock) if is_trusted(peer_uid(sock)) else None
        except (OSError, BadConnectLine) as error:
            log.debug("client refused: %s", error)
            port = None
        except BaseException:
            sock.close()
            raise
        if port is None:
            sock.close()
            return
        with trio.move_on_after(limits.CONNECT_TIMEOUT_S):
            try:
                await dial_guest(sock, port)
            except GuestError as error:
                log.debug("client refused: %s", error)

    async def _read_line(self, sock: socket.socket) -> int | None:
        """The port that the client asks for; None if it leaves, or takes too long to say."""
        line = ConnectLine()
        with trio.move_on_after(limits.CONNECT_LINE_TIMEOUT_S) as scope:
            if len(self._unnamed) >= limits.MAX_UNNAMED_CLIENTS:
                next(iter(self._unnamed)).cancel()
            self._unnamed[scope] = None
            try:
                while line.port is None:
                    await trio.lowlevel.wait_readable(sock)
                    # Peeked first: what follows the line must stay in the socket.
                    try:
                        ahead = sock.recv(MAX_LINE_BYTES, socket.MSG_PEEK)
                    except BlockingIOError:
                        continue
                    if not ahead:
                        return None
                    try:
                        taken = line.feed(ahead)
                    except BadConnectLine:
                        # Read, so that the client sees an end and not a reset.
                        sock.recv(len(ahead))
                        raise
                    sock.recv(taken)
            finally:
                del self._unnamed[scope]
        return line.port
