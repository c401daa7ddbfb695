"""Where a machine's console leads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream


class TerminalDevice(ABC):
    """A virtio device that can be its machine's console (`ConsoleConfig.device`)."""

    @abstractmethod
    def follow(self, output: Callable[[bytes], None]) -> None:
        """Call `output` with what the guest prints from now on, in order, from any thread."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Have bytes typed; waits while the guest takes none. On the trio thread."""


class ConsoleSink(ABC):
    """What a machine's console is joined to, from its guest's first byte to its last.

    One sink serves one machine. Everything is for the trio thread. A guest prints what it likes
    and as fast as it can: a sink that is slow loses bytes, which are counted, and one that stops
    altogether harms nobody but its reader.
    """

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Held open around the machine's life.

        Files are opened here, so that what is wrong with them is known before anything starts.

        Raises:
            ConfigError: it can't be used.
        """
        yield

    @abstractmethod
    async def serve(self, console: HalfCloseableStream) -> None:
        """Carry bytes until the console ends, or until whoever sits at it leaves.

        The stream is as `RunningMachine.open_console` says, and closed by the caller. Cancelled
        when the machine has been gone for a moment. What the host does to it (a full disk, a
        terminal that goes away) is told in the log and never raised.
        """

    @property
    def path(self) -> str | None:
        """Where a person finds it, if it has a place."""
        return None

    def counters(self) -> Mapping[str, int]:
        """Its part of `MachineMetrics.console`: ``dropped_bytes``, if it drops some by itself."""
        return {}
