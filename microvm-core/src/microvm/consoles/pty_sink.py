"""`PtySink`: a console at a terminal of its own, for any terminal program to open.

Our side keeps the terminal's other end open too: without anybody there, reading our side would
fail. The system holds some 4 KiB for a reader; behind that we wait for one, and what the guest
prints meanwhile is first kept and then dropped (`ConsoleHub`).
"""

from __future__ import annotations

import logging
import os
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from microvm.abc.console import ConsoleSink
from microvm.errors import ConfigError

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

log = logging.getLogger("microvm")

CHUNK_BYTES: Final = 4096


class PtySink(ConsoleSink):
    """Makes a pseudo-terminal; bytes pass as they are, both ways."""

    def __init__(self) -> None:
        self._master = -1
        self._path: str | None = None

    @property
    def path(self) -> str | None:
        """The terminal's, such as ``/dev/pts/3``, while there is one."""
        return self._path

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """As `ConsoleSink.lifespan`."""
        try:
            self._master, slave = os.openpty()
        except OSError as error:
            raise ConfigError(
                f"console: no pseudo-terminal can be had: {error.strerror}.",
                remedy="See whether /dev/pts is mounted and /proc/sys/kernel/pty/max is reached.",
            ) from error
        try:
            tty.setraw(slave)
            os.fchmod(slave, 0o600)
            os.set_blocking(self._master, False)
            self._path = os.ttyname(slave)
            log.info("The console is at %s.", self._path)
            yield
        finally:
            self._path = None
            os.close(self._master)
            os.close(slave)

    async def serve(self, console: HalfCloseableStream) -> None:
        """As `ConsoleSink.serve`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_keys, console)
                async for chunk in console:
                    await self._show(memoryview(bytes(chunk)))
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            pass  # the machine has gone

    async def _show(self, data: memoryview) -> None:
        while data:
            await trio.lowlevel.wait_writable(self._master)
            try:
                data = data[os.write(self._master, data) :]
            except BlockingIOError:
                continue

    async def _read_keys(self, console: HalfCloseableStream) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._master)
            try:
                data = os.read(self._master, CHUNK_BYTES)
            except BlockingIOError:
                continue
            await console.send_all(data)
