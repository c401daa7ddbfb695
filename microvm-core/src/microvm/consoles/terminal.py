"""Descriptors that we share with others: read, written and put into raw mode without harm to them.

O_NONBLOCK belongs to the open file, so set on our standard input it would be set for our parent's
shell too. Hence reading when there is something, and writing in threads.
"""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

CHUNK_BYTES: Final = 65536


async def read_shared(fd: int) -> bytes:
    """One chunk; nothing at the end, or when the descriptor can't be read."""
    try:
        await trio.lowlevel.wait_readable(fd)
    except OSError:
        # epoll refuses regular files and /dev/null (EPERM); these never block for long.
        await trio.lowlevel.checkpoint()
    try:
        return os.read(fd, CHUNK_BYTES)
    except OSError:
        return b""  # closed, or a background job's terminal: nothing more will come


async def write_shared(fd: int, data: bytes | bytearray) -> None:
    """Write all of it, in a thread, which is left to itself when cancelled.

    Raises:
        OSError: it can't be written.
    """
    await trio.to_thread.run_sync(_write_all, fd, data, abandon_on_cancel=True)


def _write_all(fd: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


@contextmanager
def raw_terminal(fd: int, *, enabled: bool = True) -> Iterator[None]:
    """Each key passes as it is, Ctrl-C too; a terminal is as before afterwards."""
    if not enabled or not os.isatty(fd):
        yield
        return
    # Not TCSAFLUSH: what was typed ahead stays. Not TCSADRAIN: it waits for who writes to the
    # terminal meanwhile (seen in Linux 6.18), and a write to one that has stopped never ends.
    saved = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, saved)
