"""The host's sockets of forwards: listening at an address, and connecting to one."""

from __future__ import annotations

import errno
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import BackendError, ConfigError
from microvm.forwards.addresses import TcpAddress, UnixAddress
from microvm.unix_sockets import SocketDirectory, is_trusted, peer_uid

if TYPE_CHECKING:
    from microvm.unix_sockets import BoundSocket

log = logging.getLogger("microvm.forwards")

BACKLOG: Final = 1024
OUT_OF_SOCKETS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
REST_S: Final = 0.1
"""How long nothing is accepted when the host has no more sockets."""


class HostListener(trio.abc.Listener[trio.SocketStream]):
    """A listening socket of the host's; closing it removes its path. Made by `open_listener`.

    Args:
        address: Where it listens, its port chosen.
        sock: The socket.
        bound: The path that goes with it.
        directory: What the path is in.
    """

    def __init__(
        self,
        address: TcpAddress | UnixAddress,
        sock: socket.socket,
        bound: BoundSocket | None = None,
        directory: SocketDirectory | None = None,
    ) -> None:
        self.address = address
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._bound = bound
        self._directory = directory

    async def accept(self) -> trio.SocketStream:
        """The next connection. Rests when the host is out of sockets; others wait meanwhile.

        Raises:
            trio.ClosedResourceError: it was closed.
        """
        while True:
            try:
                sock, _ = await self._sock.accept()
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise trio.ClosedResourceError("this listener was closed") from None
                if error.errno in OUT_OF_SOCKETS:
                    log.warning("%s: nothing can be accepted: %s", self.address, error.strerror)
                    await trio.sleep(REST_S)
                continue
            if isinstance(self.address, UnixAddress) and not is_trusted(peer_uid(sock)):
                sock.close()
                continue
            return trio.SocketStream(sock)

    def close(self) -> None:
        """Listen no more; needs no await."""
        self._sock.close()
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    async def aclose(self) -> None:
        """Listen no more."""
        self.close()
        await trio.lowlevel.checkpoint()


async def open_listener(address: TcpAddress | UnixAddress) -> HostListener:
    """Listen at an address of the host's.

    A TCP port is at the numeric address given and no other. A path is made 0600, in a directory
    where no other user can replace it; a socket of ours that nobody listens on is replaced.

    Raises:
        ConfigError: it can't be listened at: taken, forbidden, or not safe.
    """
    if isinstance(address, UnixAddress):
        path = Path(address.path)
        directory = SocketDirectory(path.parent, "path")
        try:
            bound = await directory.listen(path.name, BACKLOG)
        except BaseException:
            directory.close()
            raise
        return HostListener(address, bound.sock, bound, directory)
    family = _family(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
        port = sock.getsockname()[1]
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"Can't listen at {address}: {error.strerror}.",
            remedy="Choose another port, or 0 to have one chosen.",
        ) from error
    except BaseException:
        sock.close()
        raise
    return HostListener(TcpAddress(host=address.host, port=port), sock)


async def connect(address: TcpAddress | UnixAddress) -> trio.SocketStream:
    """Connect to a service of the host's.

    Raises:
        BackendError: nobody serves it, or it can't be reached.
    """
    family = socket.AF_UNIX if isinstance(address, UnixAddress) else _family(address)
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            if isinstance(address, UnixAddress):
                await sock.connect(address.path)
            else:
                await sock.connect((address.host, address.port))
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)
    except OSError as error:
        raise BackendError(
            f"The host's service at {address} can't be reached: {error.strerror or error}"
        ) from error


def _family(address: TcpAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET
