"""What is sent comes back, in order; as much as fits into a bounded queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from microvm.abc import Frame, NetBackend, NetLink, NetLinks
from microvm_devices.net.packet import scatter

MAX_FRAMES: Final = 64
"""Then the sender has to wait for the receiver: at most 4 MiB."""


class LoopbackLink(NetLink):
    """Both ends of the cable."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._came = trio.Event()
        self._went = trio.Event()

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`."""
        room = MAX_FRAMES - len(self._frames)
        taken = frames[:room]
        self._frames.extend(b"".join(frame) for frame in taken)
        if taken:
            self._came.set()
        return len(taken)

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        scatter(buffers, frame)
        self._went.set()
        return len(frame)

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        while not self._frames:
            self._came = trio.Event()
            await self._came.wait()

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        while len(self._frames) >= MAX_FRAMES:
            self._went = trio.Event()
            await self._went.wait()


class LoopbackBackend(NetBackend):
    """One such link."""

    @asynccontextmanager
    async def lifespan(self, queues: int) -> NetLinks:
        """As `NetBackend.lifespan`."""
        yield [LoopbackLink()]
