"""`StdioSink`: a console at the terminal that this process was started from.

What it shows is filtered where that is a terminal, and passes as it is where it is a file or a
pipe. What is typed is looked through for the keys that leave; see `escape`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from microvm.abc.console import ConsoleSink
from microvm.consoles.escape import EscapeReader
from microvm.consoles.terminal import raw_terminal, read_shared, write_shared
from microvm.consoles.terminal_filter import TerminalFilter

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

log = logging.getLogger("microvm")

STDIN, STDOUT = 0, 1
SEND_WITHIN_S: Final = 0.2
"""For the guest to take what was typed before the person left."""
TYPED_AHEAD_CHUNKS: Final = 64
"""What a person may type that the guest does not read, before it is dropped."""


class StdioSink(ConsoleSink):
    """Joins a console to two descriptors; `left` says whether the person there went away.

    Args:
        stdin: Where the person types. Its end is not the console's.
        stdout: Where the guest is shown.
    """

    def __init__(self, stdin: int = STDIN, stdout: int = STDOUT) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._dropped = 0
        self.left = False

    def counters(self) -> Mapping[str, int]:
        """As `ConsoleSink.counters`: of what was typed."""
        return {"dropped_bytes": self._dropped}

    async def serve(self, console: HalfCloseableStream) -> None:
        """As `ConsoleSink.serve`."""
        with raw_terminal(self._stdin):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_keys, console, nursery)
                await self._show(console)
                nursery.cancel_scope.cancel()

    async def _show(self, console: HalfCloseableStream) -> None:
        shown = TerminalFilter().feed if os.isatty(self._stdout) else bytes
        try:
            async for chunk in console:
                await write_shared(self._stdout, shown(bytes(chunk)))
        except trio.BrokenResourceError:
            return  # its machine's process has died
        except OSError as error:
            log.warning("The console can't be shown any more: %s.", error.strerror)

    async def _read_keys(self, console: HalfCloseableStream, nursery: trio.Nursery) -> None:
        to_guest, typed = trio.open_memory_channel[bytes](TYPED_AHEAD_CHUNKS)
        sent = trio.Event()
        nursery.start_soon(_send_all, console, typed, sent)
        at_terminal = os.isatty(self._stdin)
        keys = EscapeReader()
        with to_guest:
            while chunk := await read_shared(self._stdin):
                if not at_terminal:
                    await to_guest.send(chunk)
                    continue
                data = keys.feed(chunk)
                # Not waited for: the next keys may be those that leave.
                try:
                    to_guest.send_nowait(data)
                except trio.WouldBlock:
                    self._dropped += len(data)
                if keys.left:
                    break
        if keys.left:
            self.left = True
            with trio.move_on_after(SEND_WITHIN_S):
                await sent.wait()
            nursery.cancel_scope.cancel()


async def _send_all(
    console: HalfCloseableStream, typed: trio.MemoryReceiveChannel[bytes], sent: trio.Event
) -> None:
    try:
        async for data in typed:
            await console.send_all(data)
    except trio.BrokenResourceError:
        pass  # the console has ended, and its reader finds that out
    sent.set()
