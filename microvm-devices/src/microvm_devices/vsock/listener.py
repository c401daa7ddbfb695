"""`VsockListener`: connections that the guest makes to one host port, for this process."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from microvm.errors import GuestGone
from microvm_devices.vsock.limits import LISTEN_BACKLOG


class VsockListener(trio.abc.Listener[trio.SocketStream]):
    """What `VsockDevice.listen` gives. It outlives resets of the device, and is closed with it."""

    def __init__(self, port: int, on_close: Callable[[VsockListener], None]) -> None:
        self.port = port
        self._on_close = on_close
        self._gone = False
        self._send, self._receive = trio.open_memory_channel[trio.SocketStream](LISTEN_BACKLOG)

    def offer(self) -> socket.socket | None:
        """Queue a new stream for `accept`, and return its other half; None if too many wait.

        Raises:
            OSError: the host has no more sockets.
        """
        if self._send.statistics().current_buffer_used >= LISTEN_BACKLOG:
            return None
        ours, theirs = socket.socketpair()
        self._send.send_nowait(stream_over(theirs))
        return ours

    async def accept(self) -> trio.SocketStream:
        """Wait for the guest's next connection.

        Raises:
            GuestGone: the machine has ended.
            trio.ClosedResourceError: this listener was closed.
        """
        try:
            return await self._receive.receive()
        except (trio.ClosedResourceError, trio.EndOfChannel):
            if self._gone:
                raise GuestGone(f"The machine has ended; port {self.port} hears no more.") from None
            raise trio.ClosedResourceError("this listener was closed") from None

    async def aclose(self) -> None:
        """Free the port. Connections that wait unaccepted are closed."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As `aclose`, at once."""
        self._on_close(self)
        while True:
            try:
                self._receive.receive_nowait().socket.close()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self._send.close()
        self._receive.close()

    def machine_ended(self) -> None:
        """No more will come: what waits can still be accepted, then `accept` raises."""
        self._gone = True
        self._send.close()


def stream_over(sock: socket.socket) -> trio.SocketStream:
    """A trio stream over a connected socket, which is the stream's from now on."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
