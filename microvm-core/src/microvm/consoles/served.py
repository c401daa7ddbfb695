"""`SinkService`: a machine's sink, joined to its console for as long as the machine lives."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import MicrovmError

if TYPE_CHECKING:
    from microvm.abc import RunningMachine
    from microvm.abc.console import ConsoleSink

log = logging.getLogger("microvm")

LAST_WORDS_WITHIN_S: Final = 0.5
"""For the sink to take what the guest said last; one that can takes no time for it."""
JOINED_WITHIN_S: Final = 1.0
"""For a machine that is left to give its console, which it does in a moment if it works."""


class SinkService:
    """Serves one machine's sink.

    Args:
        sink: The sink.
    """

    def __init__(self, sink: ConsoleSink) -> None:
        self.sink = sink
        self._machine: RunningMachine | None = None
        self._started = trio.Event()
        self._joined = trio.Event()
        self.ended = trio.Event()
        """The console has, or whoever sat at it has left."""

    def start(self, machine: RunningMachine) -> None:
        """The machine runs: join its console."""
        self._machine = machine
        self._started.set()

    async def wait_joined(self) -> None:
        """Wait until the sink has the console, or can't have it; to be called before the end.

        Who leaves a machine the moment that it has ended would else miss all that it said: the
        console is asked for when it starts, and its worker answers a moment later.
        """
        with trio.move_on_after(JOINED_WITHIN_S, shield=True):
            await self._joined.wait()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """To be held open around the machine's start and end.

        Raises:
            ConfigError: the sink can't be used.
        """
        # Shielded, so that a file has the last words of a machine that was cancelled too.
        scope = trio.CancelScope(shield=True)
        async with self.sink.lifespan(), trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, scope)
            try:
                yield
            finally:
                if self._machine is not None:
                    with trio.move_on_after(LAST_WORDS_WITHIN_S, shield=True):
                        await self.ended.wait()
                scope.cancel()

    async def _serve(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._started.wait()
                assert self._machine is not None
                async with await self._machine.open_console() as console:
                    self._joined.set()
                    await self.sink.serve(console)
        except MicrovmError as error:
            log.warning("The console is not joined: %s", error)
        except Exception:
            log.exception("The console's sink failed; the machine goes on without it.")
        finally:
            self._joined.set()
            self.ended.set()
