"""Every frame of a device into a file that Wireshark and its like read.

The format is pcap with times in nanoseconds, link type Ethernet. Frames are as they pass between
the guest and its backend: with offloads on, checksums may be missing and segments long.

A disk may be slower than a network. So frames are kept in a buffer of bounded size, a thread writes
it out, and what the buffer has no room for is missing from the file, and counted. The file ends
with the frame that would make it too long.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from microvm.abc import NetLink
from microvm.output_file import open_output_file
from microvm_devices.net.packet import HEADER_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from microvm.abc import Frame, Offload

log = logging.getLogger(__name__)

_FILE_HEADER: Final = struct.Struct("<IHHiIII")
_MAGIC_NS: Final = 0xA1B23C4D
_LINKTYPE_ETHERNET: Final = 1
_SNAP_BYTES: Final = 262144
"""Longer than any frame."""
_RECORD: Final = struct.Struct("<IIII")

_LABEL: Final = "capture"

BUFFER_BYTES: Final = 4 << 20
MAX_FILE_BYTES: Final = 1 << 30


class CaptureFile:
    """One file, for all links of a device.

    Args:
        path: An old file of that name is overwritten, and its user's alone from then on (0600).
        max_file_bytes: Where it ends.
        buffer_bytes: What waits for the disk at most.
        clock_ns: The time of a frame.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._max_file_bytes = max_file_bytes
        self._buffer_bytes = buffer_bytes
        self._clock_ns = clock_ns
        self._buffer = bytearray()
        self._length = 0
        self._full = False
        self._failed = False
        self._more = trio.Event()
        self.dropped = 0
        """Frames that are not in the file."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Write while it is held open; afterwards all that was kept is in the file.

        Raises:
            ConfigError: the file can't be written, or somebody else uses it.
        """
        fd = open_output_file(self._path, _LABEL)
        try:
            self._buffer += _FILE_HEADER.pack(
                _MAGIC_NS, 2, 4, 0, 0, _SNAP_BYTES, _LINKTYPE_ETHERNET
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_out, fd)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._write, fd, bytes(self._buffer))
            self._buffer.clear()
            os.close(fd)

    def links(self, links: Sequence[NetLink], *, vnet_header: bool) -> tuple[NetLink, ...]:
        """The same links, what passes through them kept."""
        start = HEADER_BYTES if vnet_header else 0
        return tuple(CapturingLink(link, self, start) for link in links)

    def add(self, views: Frame, start: int, length: int) -> None:
        """Keep bytes `start` to `length` of a frame."""
        now = self._clock_ns()
        size = length - start
        buffer = self._buffer
        record_end = self._length + len(buffer) + _RECORD.size + size
        if self._full or record_end > self._max_file_bytes:
            if not self._full:
                self._full = True
                log.warning("The capture %s is full, and goes no further.", self._path)
            self.dropped += 1
            return
        if len(buffer) + size > self._buffer_bytes:
            self.dropped += 1
            return
        buffer += _RECORD.pack(now // 1_000_000_000, now % 1_000_000_000, size, size)
        position = 0
        for view in views:
            end = position + len(view)
            if end > start:
                buffer += view[max(0, start - position) : length - position]
            position = end
            if position >= length:
                break
        self._more.set()

    async def _write_out(self, fd: int) -> None:
        while True:
            await self._more.wait()
            self._more = trio.Event()
            data = bytes(self._buffer)
            self._buffer.clear()
            self._length += len(data)
            # What was taken from the buffer is written also if this is cancelled here.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._write, fd, data)

    def _write(self, fd: int, data: bytes) -> None:
        """All of `data`, in a thread; behind a record that was cut off there is nothing more."""
        view = memoryview(data)
        try:
            while view and not self._failed:
                view = view[os.write(fd, view) :]
        except OSError as error:
            self._full = self._failed = True
            log.warning("The capture %s ends here: %s.", self._path, error.strerror)


class CapturingLink(NetLink):
    """A link whose frames are kept.

    Args:
        link: The link.
        capture: Where they go.
        start: Where in each the Ethernet header begins.
    """

    def __init__(self, link: NetLink, capture: CaptureFile, start: int) -> None:
        self._link = link
        self._capture = capture
        self._start = start

    def accept(self, offloads: Offload) -> None:
        """As `NetLink.accept`."""
        self._link.accept(offloads)

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`."""
        taken = self._link.send(frames)
        for frame in frames[:taken]:
            self._capture.add(frame, self._start, sum(map(len, frame)))
        return taken

    @property
    def blocked(self) -> bool:
        """As `NetLink.blocked`."""
        return self._link.blocked

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`."""
        length = self._link.receive(buffers)
        if length is not None and length > self._start:
            room = sum(map(len, buffers))
            self._capture.add(buffers, self._start, min(length, room))
        return length

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        await self._link.wait_readable()

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        await self._link.wait_writable()
