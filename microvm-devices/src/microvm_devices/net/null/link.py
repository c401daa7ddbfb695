"""Takes every frame and gives none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import asynccontextmanager

import trio

from microvm.abc import Frame, NetBackend, NetLink, NetLinks


class NullLink(NetLink):
    """What is sent is gone."""

    def send(self, frames: Sequence[Frame]) -> int:
        """As `NetLink.send`."""
        return len(frames)

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """As `NetLink.receive`: there never is one."""
        return None

    async def wait_readable(self) -> None:
        """As `NetLink.wait_readable`."""
        await trio.sleep_forever()

    async def wait_writable(self) -> None:
        """As `NetLink.wait_writable`."""
        await trio.lowlevel.checkpoint()


class NullBackend(NetBackend):
    """One such link."""

    @asynccontextmanager
    async def lifespan(self, queues: int) -> NetLinks:
        """As `NetBackend.lifespan`."""
        yield [NullLink()]
