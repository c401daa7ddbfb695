"""Streams to guest ports as blocking sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio
    from trio.abc import HalfCloseableStream
    from trio.abc import Listener as AsyncListener

    from microvm.sync._loop import BackgroundLoop


def socket_from(
    loop: BackgroundLoop,
    nursery: trio.Nursery,
    open_stream: Callable[[], Awaitable[HalfCloseableStream]],
) -> socket.socket:
    """A blocking socket that is the stream which `open_stream` gives.

    Args:
        loop: Where the stream is opened.
        nursery: The machine's; it carries the bytes of a stream that is no socket itself.
        open_stream: Opens it.
    """
    return loop.call(partial(_as_socket, nursery, open_stream), undo=socket.socket.close)


async def _as_socket(
    nursery: trio.Nursery, open_stream: Callable[[], Awaitable[HalfCloseableStream]]
) -> socket.socket:
    from microvm.worker.relay import descriptor_of

    stream = await open_stream()
    sock = socket.socket(fileno=descriptor_of(stream, nursery))
    sock.setblocking(True)
    return sock


class Listener:
    """Takes the guest's connections to a host port; see `microvm.Machine.listen`.

    A context manager; iterating it accepts for ever.
    """

    def __init__(
        self,
        loop: BackgroundLoop,
        nursery: trio.Nursery,
        listener: AsyncListener[HalfCloseableStream],
    ) -> None:
        self._loop = loop
        self._nursery = nursery
        self._listener = listener

    def accept(self) -> socket.socket:
        """Wait for the guest's next connection, and return it as a blocking socket."""
        return socket_from(self._loop, self._nursery, self._listener.accept)

    def close(self) -> None:
        """Free the port."""
        if not self._loop.foreign:
            self._loop.call(self._listener.aclose, bounded=False)

    def __iter__(self) -> Iterator[socket.socket]:
        while True:
            yield self.accept()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
