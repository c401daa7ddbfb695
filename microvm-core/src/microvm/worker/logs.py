"""What is logged in a worker, sent to the caller's process, from whatever thread."""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from typing import TYPE_CHECKING, Final

from microvm.worker.values import MAX_TEXT

if TYPE_CHECKING:
    import trio

    from microvm.worker.frames import Message
    from microvm.worker.wire import Wire

MAX_WAITING: Final = 200
"""Frames that the caller has not taken; beyond them records are dropped."""


class LogForwarder(logging.Handler):
    """Sends each record as a frame. Before `attach` only the main thread's."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        self._token: trio.lowlevel.TrioToken | None = None

    def attach(self, token: trio.lowlevel.TrioToken) -> None:
        """There is a loop now: other threads' records are sent by it."""
        self._token = token

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        except Exception:
            text = f"(a record of {record.name} that can't be formatted)"
        message = {
            "event": "log",
            "level": record.levelno,
            "logger": record.name[:MAX_TEXT],
            "text": text[:MAX_TEXT],
        }
        if threading.current_thread() is threading.main_thread():
            self._post(message)
        elif self._token is not None:
            with contextlib.suppress(RuntimeError):  # the loop has finished
                self._token.run_sync_soon(self._post, message)

    def _post(self, message: Message) -> None:
        if self._wire.waiting < MAX_WAITING:
            self._wire.post(message)


def forward_logs(wire: Wire, level: int) -> LogForwarder:
    """Send all that is logged in this process at `level` or above."""
    forwarder = LogForwarder(wire)
    root = logging.getLogger()
    root.addHandler(forwarder)
    root.setLevel(level)
    return forwarder
