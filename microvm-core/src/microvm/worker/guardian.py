"""`Guardian`: the end of the caller's process is the end of its worker, whatever that is doing.

A thread waits, without a loop, for either of two signs: the control socket is closed, or the
caller's process has ended (a fork of the caller's may hold the socket longer). Then the worker
has a moment to leave its contexts, so that no socket of the vsock device stays in the file system;
and then it ends, also when its trio thread is held by whatever a guest or a device makes it do.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Final

LEAVE_WITHIN_S: Final = 0.5
"""Leaving takes some ten milliseconds. The caller is gone: all that anyone waits for is the end."""

EXIT_ABANDONED: Final = 70
"""EX_SOFTWARE of sysexits.h: the exit code of a worker that did not leave by itself."""


class Guardian:
    """Watches over this process; `start` it as early as can be.

    Args:
        control: The control socket's number.
        parent: The caller's process id.
    """

    def __init__(self, control: int, parent: int) -> None:
        self._control = control
        self._parent = parent
        self._lock = threading.Lock()
        self._abandoned = False
        self._leave: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to watch. Ends the process if the caller has ended already."""
        watched = [self._control, *self._parent_descriptors()]
        if os.getppid() != self._parent:
            os._exit(EXIT_ABANDONED)
        threading.Thread(
            target=self._watch, args=(watched,), name="microvm-guardian", daemon=True
        ).start()

    def on_abandoned(self, leave: Callable[[], None]) -> None:
        """Have `leave` called, by the guardian's thread or at once, when the caller is gone."""
        with self._lock:
            self._leave = leave
            abandoned = self._abandoned
        if abandoned:
            leave()

    def _parent_descriptors(self) -> list[int]:
        try:
            return [os.pidfd_open(self._parent)]
        except (OSError, AttributeError):
            return []  # no such system, or no such process: `start` looks

    def _watch(self, watched: list[int]) -> None:
        poll = select.poll()
        for descriptor in watched:
            # Of the socket only POLLHUP is wanted, which is always told.
            poll.register(descriptor, 0 if descriptor == self._control else select.POLLIN)
        poll.poll()
        with self._lock:
            self._abandoned = True
            leave = self._leave
        if leave is not None:
            leave()
        threading.Event().wait(LEAVE_WITHIN_S)
        os._exit(EXIT_ABANDONED)
