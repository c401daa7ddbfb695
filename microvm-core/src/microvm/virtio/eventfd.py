"""Waiting for an eventfd (a counter of eight bytes; eventfd(2)) on the trio thread."""

from __future__ import annotations

import contextlib
import os

import trio


async def wait_eventfd(number: int) -> None:
    """Return once the counter is above 0, and set it to 0. The descriptor is non-blocking.

    Raises:
        OSError: the descriptor does not work.
    """
    while True:
        # Always through the poll: a guest that keeps ringing must not keep other tasks from
        # running.
        await trio.lowlevel.wait_readable(number)
        with contextlib.suppress(BlockingIOError):
            os.read(number, 8)
            return
