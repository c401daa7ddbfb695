"""`StreamLink`: frames over a stream socket, each behind its length (be32), as QEMU frames them.

passt, gvproxy, socket_vmnet and QEMU's own ``-netdev stream`` speak it. Whole batches are sent by
one sendmsg(2), from where they lie; what comes is read by one recv(2) into a buffer of our own,
which holds many frames, and is copied to the guest from there.
"""

from __future__ import annotations

import bisect
import socket
import struct
from collections.abc import Sequence
from typing import Final

import trio

from microvm.abc import Frame, NetLink
from microvm.errors import NetLinkDown
from microvm_devices.net.packet import MAX_FRAME_BYTES, scatter

PREFIX: Final = struct.Struct(">I")
BUFFER_BYTES: Final = 512 * 1024
"""Seven of the longest frames: as much as an AF_UNIX socket holds, and more."""
MAX_PIECES: Final = 1000
"""Of one sendmsg(2): IOV_MAX is 1024."""
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


class StreamLink(NetLink):
    """One end of the socket.

    Args:
        sock: Connected. It becomes non-blocking, and stays its owner's to close.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._tail = b""
        """The rest of a frame that the socket took in part."""

    # --- sending ---------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`. Of a frame that is cut the rest is copied, and sent first later."""
        taken = 0
        if self._tail and not self._send_tail():
            return 0
        while taken < len(frames):
            pieces: list[bytes | memoryview] = []
            ends: list[int] = []
            total = 0
            for frame in frames[taken:]:
                if pieces and len(pieces) + len(frame) >= MAX_PIECES:
                    break
                length = sum(map(len, frame))
                pieces.append(PREFIX.pack(length))
                pieces += frame
                total += PREFIX.size + length
                ends.append(total)
            sent = self._sendmsg(pieces)
            if sent == total:
                taken += len(ends)
                continue
            whole = bisect.bisect_right(ends, sent)
            begun = sent - (ends[whole - 1] if whole else 0)
            taken += whole
            if begun:
                frame = frames[taken]
                record = PREFIX.pack(sum(map(len, frame))) + b"".join(frame)
                self._tail = record[begun:]
                taken += 1
            break
        return taken

    def _send_tail(self) -> bool:
        self._tail = self._tail[self._sendmsg([self._tail]) :]
        return not self._tail

    def _sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        """How many bytes the socket took."""
        try:
            return self._sock.sendmsg(pieces, (), _NO_SIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise NetLinkDown(f"The other end is gone: {error.strerror}.") from error

    @property
    def blocked(self) -> bool:
        """As `NetLink.blocked`."""
        return bool(self._tail)

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        while True:
            await trio.lowlevel.wait_writable(self._sock)
            if not self._tail or self._send_tail():
                return

    # --- receiving -------------------------------------------------------------------------

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`."""
        while True:
            start = self._start
            have = self._end - start - PREFIX.size
            if have >= 0:
                (length,) = PREFIX.unpack_from(self._buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise NetLinkDown(f"The other end sent a frame of {length} bytes.")
                if have >= length:
                    start += PREFIX.size
                    self._start = end = start + length
                    first = buffers[0]
                    if len(first) >= length:
                        first[:length] = self._buffer[start:end]
                    else:
                        scatter(buffers, self._buffer[start:end])
                    return int(length)
            if not self._fill():
                return None

    def _fill(self) -> bool:
        """Read as much as there is room for; False if there was nothing."""
        buffer, start, end = self._buffer, self._start, self._end
        if start == end:
            self._start = end = 0
        elif BUFFER_BYTES - start < PREFIX.size + MAX_FRAME_BYTES:
            left = end - start
            buffer[:left] = bytes(buffer[start:end])
            self._start, end = 0, left
        self._end = end
        try:
            received = self._sock.recv_into(buffer[end:])
        except BlockingIOError:
            return False
        except OSError as error:
            raise NetLinkDown(f"The other end is gone: {error.strerror}.") from error
        if not received:
            raise NetLinkDown("The other end hung up.")
        self._end = end + received
        return True

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        await trio.lowlevel.wait_readable(self._sock)
