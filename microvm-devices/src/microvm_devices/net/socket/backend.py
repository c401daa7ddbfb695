"""`SocketBackend`: connects to a program that carries frames, by an AF_UNIX socket.

A stream socket in QEMU's framing, or a datagram socket with one frame a datagram, as gvproxy has
for vfkit. The program is somebody else's, and runs before the machine does.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from microvm.abc import NetBackend, NetLink, NetLinks
from microvm.config import MAX_MTU, MIN_MTU
from microvm.errors import ConfigError
from microvm_devices.net.options import check_names, wrong
from microvm_devices.net.socket.datagram import DatagramLink
from microvm_devices.net.stream import StreamLink

TYPES: Final = {"stream": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM}
CONNECT_WITHIN_S: Final = 5.0
"""For a program that is behind with accepting; there is no waiting for one that is not there."""


@attrs.frozen(kw_only=True)
class SocketOptions:
    """Where the program is."""

    path: Path
    type: str = "stream"
    """Or ``dgram``."""
    mtu: int | None = None
    """What the program can carry, where it is not 1500."""


def read_options(options: Mapping[str, Any]) -> SocketOptions:
    """Check what `NetConfig.options` has for us.

    Raises:
        ConfigError: it can't be used.
    """
    check_names("socket", options, ("path", "type", "mtu"))
    path, kind, mtu = options.get("path"), options.get("type", "stream"), options.get("mtu")
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise wrong("socket", "path", f"must be a socket's path, not {path!r}.")
    if kind not in TYPES:
        raise wrong("socket", "type", f"must be stream or dgram, not {kind!r}.")
    if mtu is not None and (type(mtu) is not int or not MIN_MTU <= mtu <= MAX_MTU):
        raise wrong("socket", "mtu", f"must be from {MIN_MTU} to {MAX_MTU}, not {mtu!r}.")
    return SocketOptions(path=Path(path), type=kind, mtu=mtu)


class SocketBackend(NetBackend):
    """One connection, for one machine."""

    def __init__(self, options: SocketOptions) -> None:
        self._options = options

    @property
    def mtu(self) -> int | None:
        """As the options say."""
        return self._options.mtu

    @asynccontextmanager
    async def lifespan(self, queues: int) -> NetLinks:
        """As `NetBackend.lifespan`."""
        kind = TYPES[self._options.type]
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                await self._connect(sock)
                yield [StreamLink(sock)]
                return
            # A datagram socket is answered by its name, and only we may see it.
            with tempfile.TemporaryDirectory(prefix="microvm-net-") as folder:
                sock.bind(os.path.join(folder, "guest"))
                await self._connect(sock)
                link: NetLink = DatagramLink(sock)
                yield [link]

    async def _connect(self, sock: socket.socket) -> None:
        path = os.fspath(self._options.path)
        try:
            with trio.fail_after(CONNECT_WITHIN_S):
                while True:
                    try:
                        sock.connect(path)
                    except BlockingIOError:
                        # unix(7): the backlog is full; there is nothing to poll for.
                        await trio.sleep(0.01)
                    else:
                        return
        except trio.TooSlowError:
            raise ConfigError(
                f"Nobody accepts the connection to {path}.", remedy="See whether its program hangs."
            ) from None
        except OSError as error:
            # A path that is too long has no errno.
            why = error.strerror or str(error)
            raise ConfigError(
                f"The socket {path} can't be reached: {why}.",
                remedy="Start the program that makes it first, and give the path that it has.",
            ) from error
