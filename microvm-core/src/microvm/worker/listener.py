"""`WorkerListener`: the guest's connections to one host port, as a worker hands them over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from microvm.worker.channels import ACCEPT_AHEAD

if TYPE_CHECKING:
    from microvm.errors import MicrovmError


class WorkerListener(trio.abc.Listener[trio.SocketStream]):
    """What `WorkerChannels.listen` gives.

    Args:
        port: The host's port.
        on_taken: Called for each stream that `accept` gives: another may come.
        on_close: Called once, when the user closes it.
    """

    def __init__(
        self, port: int, *, on_taken: Callable[[], None], on_close: Callable[[], None]
    ) -> None:
        self.port = port
        self._on_taken = on_taken
        self._on_close = on_close
        self._error: MicrovmError | None = None
        self._send, self._receive = trio.open_memory_channel[trio.SocketStream](ACCEPT_AHEAD)

    def offer(self, stream: trio.SocketStream) -> bool:
        """Queue a stream for `accept`; False if too many wait."""
        try:
            self._send.send_nowait(stream)
        except trio.WouldBlock:
            return False
        return True

    def fail(self, error: MicrovmError) -> None:
        """No more will come: what waits can still be accepted, then `accept` raises this."""
        self._error = error
        self._send.close()

    async def accept(self) -> trio.SocketStream:
        """Wait for the guest's next connection.

        Raises:
            GuestGone: the machine has ended.
            ConfigError: the port can't be listened to, as the worker found.
            trio.ClosedResourceError: this listener was closed.
        """
        try:
            stream = await self._receive.receive()
        except trio.EndOfChannel:
            assert self._error is not None
            raise self._error from None
        except trio.ClosedResourceError:
            raise trio.ClosedResourceError("this listener was closed") from None
        self._on_taken()
        return stream

    async def aclose(self) -> None:
        """Free the port. Connections that wait unaccepted are closed."""
        self._on_close()
        while True:
            try:
                self._receive.receive_nowait().socket.close()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._send.close()
        self._receive.close()
        await trio.lowlevel.checkpoint()
