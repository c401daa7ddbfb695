"""Trio's streams as Python's binary files."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import trio
    from _typeshed import ReadableBuffer, WriteableBuffer

    from microvm.sync._loop import BackgroundLoop

READ_BYTES: Final = 64 * 1024


def reader(loop: BackgroundLoop, stream: trio.abc.ReceiveStream) -> io.BufferedReader:
    """A buffered file that reads a stream out of the guest."""
    return io.BufferedReader(RawReader(loop, stream), READ_BYTES)


class RawReader(io.RawIOBase):
    """The raw half of what `reader` gives."""

    def __init__(self, loop: BackgroundLoop, stream: trio.abc.ReceiveStream) -> None:
        self._loop = loop
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self.closed:
            raise ValueError("This stream is closed.")
        with memoryview(buffer).cast("B") as view:
            data = self._loop.call(partial(self._stream.receive_some, len(view)))
            view[: len(data)] = data
            return len(data)

    def close(self) -> None:
        # Not waited for: the collector of garbage may close it, on any thread.
        if not self.closed:
            super().close()
            self._loop.soon(self._stream.aclose)


class StreamWriter(io.RawIOBase):
    """A stream into the guest as a binary file: unbuffered, and `write` writes all of it.

    Closing it is the end of file of whoever reads it.
    """

    def __init__(self, loop: BackgroundLoop, stream: trio.abc.SendStream) -> None:
        self._loop = loop
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Write bytes, as fast as they are read.

        Raises:
            GuestError: nobody will read them: a command has ended or closed its stdin.
        """
        if self.closed:
            raise ValueError("This stream is closed.")
        with memoryview(data).cast("B") as view:
            self._loop.call(partial(self._stream.send_all, view))
            return len(view)

    def close(self) -> None:
        """Send the end of file."""
        if not self.closed:
            super().close()
            self._loop.soon(self._stream.aclose)
