"""`Wire`: one end of the socket between a machine's two processes.

Sending never waits: what the socket does not take at once is kept, and sent by `flush_forever`.
Whoever sends bounds how much that may become (requests wait for their answers; see `waiting`).

A descriptor travels with its frame's first byte. The kernel does not merge what comes with
descriptors into other reads, so they arrive in the order of the frames that say ``fd``, and at
most one with each read.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from microvm.errors import WorkerProtocolError
from microvm.worker.frames import FrameReader, Message, encode

if TYPE_CHECKING:
    import trio

CHUNK_BYTES: Final = 64 * 1024
MAX_EARLY_DESCRIPTORS: Final = 4
"""That have come, and whose frames have not come whole."""

_CLOEXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_INT: Final = array.array("i").itemsize


@attrs.define(eq=False)
class Received:
    """A message, and the descriptor that came with it: the receiver's, to take or to drop."""

    message: Message
    _descriptor: int | None = None
    kept_out: bool = False
    """Whether a descriptor was sent that this process's limit of open files kept out."""

    def take(self) -> int | None:
        """The descriptor, to be closed by whoever takes it; None if there is none."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def drop(self) -> None:
        """Close the descriptor, if it was not taken."""
        descriptor = self.take()
        if descriptor is not None:
            os.close(descriptor)


class Wire:
    """Messages over a connected stream socket, which is the wire's from now on.

    Not for use by several threads at once. Only the methods that are async need a trio loop.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._frames = FrameReader()
        self._early: deque[int | None] = deque()
        self._received: deque[Received] = deque()
        self._outgoing: deque[tuple[memoryview, int | None]] = deque()
        self._broken = False
        self._more: trio.Event | None = None

    def fileno(self) -> int:
        """The socket's."""
        return self._sock.fileno()

    # --- sending -------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many frames the socket has not taken yet."""
        return len(self._outgoing)

    def post(self, message: Message, descriptor: int | None = None) -> None:
        """Send a message, now or as soon as the socket takes it; dropped if nobody reads.

        Args:
            message: Of JSON's types.
            descriptor: One to send along, and close.

        Raises:
            ValueError: the message is too long.
        """
        if descriptor is not None:
            message = {**message, "fd": True}
        try:
            frame = encode(message)
        except ValueError:
            if descriptor is not None:
                os.close(descriptor)
            raise
        self._outgoing.append((memoryview(frame), descriptor))
        if not self._flush() and self._more is not None:
            self._more.set()

    def _flush(self) -> bool:
        """Send what the socket takes; whether that was all."""
        while self._outgoing:
            data, descriptor = self._outgoing[0]
            try:
                sent = self._send(data, descriptor)
            except BlockingIOError:
                return False
            self._outgoing.popleft()
            if descriptor is not None:
                os.close(descriptor)
            if sent < len(data):
                self._outgoing.appendleft((data[sent:], None))
        return True

    def _send(self, data: memoryview, descriptor: int | None) -> int:
        rights = [] if descriptor is None else [_rights(descriptor)]
        if not self._broken:
            try:
                return self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                raise
            except OSError:
                self._broken = True  # the other side has gone, and our reader finds out
        return len(data)

    async def flush_forever(self) -> None:
        """Send what `post` could not, until cancelled."""
        import trio

        while True:
            self._more = trio.Event()
            if not self._flush():
                await trio.lowlevel.wait_writable(self._sock)
            else:
                await self._more.wait()

    def flush_within(self, seconds: float) -> None:
        """Send what is left, blocking for so long at most."""
        until = time.monotonic() + seconds
        while not self._flush() and (left := until - time.monotonic()) > 0:
            wait_for(self._sock, select.POLLOUT, left)

    def finish_writing(self) -> None:
        """Let the other side find the end, once it has read what was sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """End both directions: the next `receive` finds the end."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # --- receiving -----------------------------------------------------------------------

    def receive_now(self) -> Received:
        """The next message.

        Raises:
            BlockingIOError: it has not come, or not whole.
            EOFError: the other side has closed, or died.
            WorkerProtocolError: it broke the rules.
        """
        while not self._received:
            self._read()
        return self._received.popleft()

    def _read(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                CHUNK_BYTES, socket.CMSG_SPACE((MAX_EARLY_DESCRIPTORS + 1) * _INT), _CLOEXEC
            )
        except ConnectionResetError:
            raise EOFError from None
        self._take_descriptors(ancillary, bool(flags & socket.MSG_CTRUNC))
        if not data:
            raise EOFError
        for message in self._frames.feed(data):
            self._received.append(self._with_descriptor(message))

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]], kept_out: bool) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                rights = array.array("i", data[: len(data) - len(data) % _INT])
                for descriptor in rights:
                    os.set_inheritable(descriptor, False)
                    self._early.append(descriptor)
        if kept_out:
            self._early.append(None)
        if len(self._early) > MAX_EARLY_DESCRIPTORS:
            raise WorkerProtocolError("The worker process sent descriptors that nobody waits for.")

    def _with_descriptor(self, message: Message) -> Received:
        if "fd" not in message:
            return Received(message)
        if not self._early:
            raise WorkerProtocolError("The worker process promised a descriptor and sent none.")
        descriptor = self._early.popleft()
        return Received(message, descriptor, kept_out=descriptor is None)

    async def receive(self) -> Received:
        """As `receive_now`, but waits until it has come."""
        import trio

        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.receive_now()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)

    def wait_readable(self, seconds: float | None) -> bool:
        """Block until something has come, for so long at most if not None; whether it has."""
        return wait_for(self._sock, select.POLLIN, seconds)

    # --- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket, and the descriptors that were on their way. May be repeated."""
        for received in self._received:
            received.drop()
        for descriptor in (*self._early, *(descriptor for _, descriptor in self._outgoing)):
            if descriptor is not None:
                os.close(descriptor)
        self._received.clear()
        self._early.clear()
        self._outgoing.clear()
        self._sock.close()


def wait_for(sock: socket.socket, events: int, seconds: float | None) -> bool:
    """Block until one of the events, or an error, is there; for so long at most if not None."""
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(None if seconds is None else max(0, round(seconds * 1000))))


def _rights(descriptor: int) -> tuple[int, int, array.array[int]]:
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
