"""Descriptors that we share with others: read, written and put into raw mode without harm to them.

O_NONBLOCK belongs to the open file, so set on our standard input it would be set for our parent's
shell too. Hence reading when there is something, and writing in threads.
"""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

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
    await trio.to_thread.run_sync(write_all, fd, data, abandon_on_cancel=True)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write all of it, and wait for that, whether or not somebody has set O_NONBLOCK.

    Raises:
        OSError: it can't be written.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll()


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
        _give_back(fd, saved)


@contextmanager
def line_terminal(fd: int, *, echo: bool) -> Iterator[None]:
    """A line is typed, seen or not, and Ctrl-C is a signal; as before afterwards.

    What was typed before is no answer to what is asked now, and is thrown away. So is a line that
    was typed by half when the block is left by an error: it may be a secret, and the next reader
    may be a shell.
    """
    saved, mode = termios.tcgetattr(fd), termios.tcgetattr(fd)
    mode[0] |= termios.ICRNL
    mode[3] |= termios.ICANON | termios.ISIG | termios.ECHONL | termios.ECHO
    if not echo:
        mode[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        termios.tcflush(fd, termios.TCIFLUSH)
        yield
    except BaseException:
        with suppress(termios.error):
            termios.tcflush(fd, termios.TCIFLUSH)
        raise
    finally:
        _give_back(fd, saved)


def _give_back(fd: int, saved: list[Any]) -> None:
    with suppress(termios.error):  # hung up: nobody is there to want it
        termios.tcsetattr(fd, termios.TCSANOW, saved)
