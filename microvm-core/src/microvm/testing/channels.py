"""`MemoryChannels`: host and guest ports within one process, for tests without a guest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio
import trio.testing

from microvm.abc import GuestChannels
from microvm.errors import ConfigError, GuestRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.abc import HalfCloseableStream

    MemoryStream = trio.StapledStream[
        trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream
    ]


class MemoryListener(trio.abc.Listener["MemoryStream"]):
    """What `listen` gives: streams arrive in the order in which the other side connected."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._send, self._receive = trio.open_memory_channel["MemoryStream"](math.inf)
        self._on_close = on_close

    def deliver(self, stream: MemoryStream) -> None:
        """Queue a stream for `accept`."""
        self._send.send_nowait(stream)

    async def accept(self) -> MemoryStream:
        """Wait for the next stream."""
        try:
            return await self._receive.receive()
        except trio.ClosedResourceError:
            raise trio.ClosedResourceError("this listener was closed") from None

    async def aclose(self) -> None:
        """Free the port; streams that wait unaccepted are dropped."""
        self._receive.close()
        self._on_close()
        await trio.lowlevel.checkpoint()


class _Side(GuestChannels):
    """One side's view: it connects to the other side's listeners."""

    def __init__(self) -> None:
        self.listeners: dict[int, MemoryListener] = {}
        self.other: _Side = self

    async def connect(self, port: int) -> HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        listener = self.other.listeners.get(port)
        if listener is None:
            raise GuestRefused(f"Nothing listens on port {port}.")
        near, far = trio.testing.memory_stream_pair()
        listener.deliver(far)
        return near

    def listen(self, port: int) -> MemoryListener:
        if port in self.listeners:
            raise ConfigError(f"Port {port} has a listener already.")

        def free() -> None:
            self.listeners.pop(port, None)

        listener = self.listeners[port] = MemoryListener(free)
        return listener


class MemoryChannels(_Side):
    """The host's side; `guest` is the guest's, with the same two methods."""

    def __init__(self) -> None:
        super().__init__()
        self.guest = _Side()
        self.other = self.guest
        self.guest.other = self
