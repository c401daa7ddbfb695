"""`StreamPort`: a named port, as a socket pair between a program of the host and the guest's.

The host's end is a `trio.SocketStream`; ours is served while the guest's driver has the device in
use. Nothing is buffered here: what the guest does not take stays in the socket and slows the host
program down, and what the host program does not take stays in the queue and slows the guest's.

When one side goes:

* the host program ends its sending, or goes: the guest is told that the port is closed, and reads
  the end behind the last byte. What it still sends goes out as long as somebody takes it.
* the guest's program closes the port: what it had sent is delivered, and then the stream ends.
  The host opens the port anew for the next program, which gets nothing that was for this one.
* what a guest's program sent while nobody on the host had the port open waits for who opens it;
  and if that program is gone by then, the stream ends behind it.
* the host program goes, and what it sent has not been taken: that waits for the guest. While a
  program of the guest is there to take it, who opens the port anew has to wait too; where there
  is none, who comes next begins anew, and what was left is dropped.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from microvm.errors import BackendError, ConfigError
from microvm_devices.console.queues import next_buffer

if TYPE_CHECKING:
    import trio

    from microvm.abc import ActiveQueue
    from microvm.virtio.chain import DescriptorChain

MAX_VIEWS: Final = 64
"""Buffers of a chain that one system call gets."""
BATCH: Final = 64
"""Chains after which the guest is interrupted and other tasks have their turn."""


class _Connection:
    """One stream: our end of its socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.host_ended = False
        """The host program sends no more."""
        self.guest_ended = False
        """The guest's program has closed the port while this was there."""
        self.used = False
        """A guest's program has had to do with it."""
        self.sent = False
        """Something of the guest's has gone out."""

    @property
    def host_gone(self) -> bool:
        """Whether the host has closed its end, also where it had sent something before."""
        poll = select.poll()
        poll.register(self.sock, 0)  # the events that count are told unasked
        return bool(poll.poll(0))

    def discard_input(self) -> int:
        """Throw away what the host has sent; returns how much. No more comes, so this ends."""
        discarded = 0
        with contextlib.suppress(OSError):
            while data := self.sock.recv(1 << 16):
                discarded += len(data)
        return discarded

    def close(self) -> None:
        import trio

        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()


class StreamPort:
    """One named port. Everything is for the trio thread.

    Args:
        name: Its name.
        tell: Called when the host has opened (True) or closed (False) the port.
        settle: Has every control message heard that the driver has sent by now. What it sends on
            a port comes behind the opening, but on another queue.
    """

    def __init__(
        self, name: str, tell: Callable[[bool], None], settle: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self._tell = tell
        self._settle = settle
        self._connection: _Connection | None = None
        self._guest_open = False
        self._left_unheard = False
        """A program of the guest has closed the port while the host had not opened it."""
        self._waits: set[trio.CancelScope] = set()
        self._sent = 0
        """Of the chain that is being sent: a pause may come in the middle of it."""
        self._sending: _Connection | None = None
        """To whom that is."""
        self.requests = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.dropped_bytes = 0
        """Sent to an end of a stream that had gone, or by one that was gone before it was taken."""

    # --- the host's side ---------------------------------------------------------------------

    def open(self) -> trio.SocketStream:
        """A stream to whatever opens the port in the guest, now or later.

        Raises:
            ConfigError: somebody has it open, or what somebody sent is still on its way.
            BackendError: the host has no more sockets.
        """
        import trio

        self._require_free()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise BackendError(
                f"The console's port {self.name!r} can't be opened: {error.strerror}.",
                remedy="Raise the limit on open files (ulimit -n), or close streams.",
            ) from error
        ours.setblocking(False)
        self._replace_connection()
        self._connection = _Connection(ours)
        self._connection.used = self._guest_open
        self._tell(True)
        self._change()
        return trio.SocketStream(trio.socket.from_stdlib_socket(theirs))

    def _require_free(self) -> None:
        # Looked at here: while no program of the guest is there, or no guest, nobody else does.
        connection = self._connection
        if connection is None or connection.host_ended or self._sees_end(connection):
            return
        if not connection.host_gone:
            raise ConfigError(
                f"The console's port {self.name!r} is open already.",
                remedy="Close the other stream first: a port has one.",
            )
        if self._is_heard(connection):
            raise ConfigError(
                f"The guest's program at the console's port {self.name!r} has not taken yet what "
                "an earlier stream has sent.",
                remedy="Try again when it has, or have it close the port.",
            )

    def _replace_connection(self) -> None:
        connection = self._connection
        if connection is not None and not connection.host_ended:
            self.dropped_bytes += connection.discard_input()
        self._drop_connection()

    # --- the guest's side --------------------------------------------------------------------

    def guest_opened(self, is_open: bool) -> None:
        """A program of the guest has opened or closed the port."""
        self._guest_open = is_open
        connection = self._connection
        self._left_unheard = not is_open and connection is None
        if connection is not None:
            connection.used = True
            # It stays so: the next program of the guest may come before the end was seen to.
            connection.guest_ended |= not is_open
        self._change()

    def reset(self) -> None:
        """The guest is gone, and so is what a stream of its had been about."""
        self._guest_open = self._left_unheard = False
        self._sent = 0
        self._sending = None
        if self._connection is not None and self._connection.used:
            self._drop_connection()

    def close(self) -> None:
        """End the stream, if there is one."""
        self._drop_connection()

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        if not connection.host_ended:
            self._tell(False)
        self._change()

    # --- host to guest -----------------------------------------------------------------------

    async def serve_input(self, active: ActiveQueue) -> None:
        """Give the guest what the host sends, for as long as the run lasts.

        Raises:
            GuestError: the driver broke a rule.
        """
        import trio

        active.queue.disable_notification()
        chain: DescriptorChain | None = None
        while True:
            connection = self._connection
            if connection is None or connection.host_ended or not self._is_heard(connection):
                await self._until_change(trio.sleep_forever)
                continue
            if not await self._until_ready(trio.lowlevel.wait_readable, connection):
                continue
            if self._sees_end(connection):
                continue
            if chain is None:
                chain = await next_buffer(active)
            if connection is self._connection and self._is_heard(connection):
                length = self._receive(connection, chain)
                if length:
                    active.queue.add_used(chain.head, length)
                    self.requests += 1
                    active.notify()
                    chain = None

    def _is_heard(self, connection: _Connection) -> bool:
        """Whether the program of the guest that it is for is there."""
        return self._guest_open and not connection.guest_ended

    def _sees_end(self, connection: _Connection) -> bool:
        """Whether the host sends no more, which the guest is told: also one without buffers."""
        try:
            if connection.sock.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            return False
        except OSError:
            pass  # a reset: it had not read everything
        connection.host_ended = True
        self._tell(False)
        self._change()
        return True

    def _receive(self, connection: _Connection, chain: DescriptorChain) -> int:
        """Read from the host into a chain; 0 when there is nothing, or no more will come."""
        try:
            length = connection.sock.recvmsg_into(chain.writable[:MAX_VIEWS])[0]
        except OSError:
            return 0  # the next look at it tells which
        self.received_bytes += length
        return length

    # --- guest to host -----------------------------------------------------------------------

    async def serve_output(self, active: ActiveQueue) -> None:
        """Give the host what the guest sends, for as long as the run lasts.

        Raises:
            GuestError: the driver broke a rule.
        """
        import trio

        queue = active.queue
        taken = 0
        while True:
            connection = self._connection
            if connection is None:
                active.notify()
                await self._until_change(trio.sleep_forever)
                continue
            queue.disable_notification()
            chain = queue.pop()
            if chain is not None:
                await self._send(active, chain)
                queue.add_used(chain.head, 0)
                self.requests += 1
                taken += 1
                if taken % BATCH == 0:
                    active.notify()
                    await trio.lowlevel.checkpoint()
                continue
            active.notify()
            if queue.enable_notification():
                await trio.lowlevel.checkpoint()
            elif self._has_ended(connection):
                self._left_unheard = False
                self._drop_connection()
            else:
                await self._until_change(active.doorbell.wait)

    def _has_ended(self, connection: _Connection) -> bool:
        """Whether the guest's program is gone; everything that it had sent went out before."""
        self._settle()
        if connection is not self._connection:
            return False
        return connection.guest_ended or (self._left_unheard and connection.sent)

    async def _send(self, active: ActiveQueue, chain: DescriptorChain) -> None:
        """Send a chain to the host, waiting while it takes none; drop what nobody takes.

        It is for one stream: who opens the port in the middle of it does not get its end.
        """
        import trio

        if not self._sent:
            self._sending = self._connection
        while self._sent < chain.readable_len:
            connection = self._connection
            if connection is None or connection is not self._sending:
                self.dropped_bytes += chain.readable_len - self._sent
                break
            try:
                done = connection.sock.sendmsg(
                    _views(chain, self._sent), [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                )
            except BlockingIOError:
                active.notify()
                await self._until_ready(trio.lowlevel.wait_writable, connection)
            except OSError:
                if connection is self._connection:
                    self._drop_connection()
            else:
                connection.used = connection.sent = True
                self._sent += done
                self.sent_bytes += done
        self._sent = 0
        self._sending = None

    # --- waiting -----------------------------------------------------------------------------

    def _change(self) -> None:
        """Have both directions look anew."""
        for scope in self._waits:
            scope.cancel()

    async def _until_change(self, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait, until something has changed at the latest."""
        import trio

        with trio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await wait()
            finally:
                self._waits.discard(scope)

    async def _until_ready(
        self, wait: Callable[[socket.socket], Awaitable[None]], connection: _Connection
    ) -> bool:
        """Wait for the socket; whether it is still the one to look at."""
        import trio

        with contextlib.suppress(trio.ClosedResourceError):
            await self._until_change(lambda: wait(connection.sock))
        return connection is self._connection


def _views(chain: DescriptorChain, skip: int) -> list[memoryview]:
    """The first views of a chain behind its first `skip` bytes."""
    views: list[memoryview] = []
    for view in chain.readable:
        if skip >= len(view):
            skip -= len(view)
            continue
        views.append(view[skip:])
        skip = 0
        if len(views) == MAX_VIEWS:
            break
    return views
