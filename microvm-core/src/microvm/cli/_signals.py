"""SIGTERM and SIGHUP end a session as tidily as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from microvm._groups import only_error


class EndedBySignal(SystemExit):
    """Carries 128+n out through every scope, as a shell would report the signal."""


@asynccontextmanager
async def ended_by_signals(*signals: signal.Signals) -> AsyncIterator[None]:
    """Cancel the body at the first of `signals`, then exit with 128 + its number.

    The body's own error comes out as it is, not in a group.
    """
    received: signal.Signals | None = None

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal received
        with trio.open_signal_receiver(*signals) as arriving:
            async for number in arriving:
                received = signal.Signals(number)
                scope.cancel()
                return

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only_error(group) from None
    if received is not None:
        raise EndedBySignal(128 + received)
