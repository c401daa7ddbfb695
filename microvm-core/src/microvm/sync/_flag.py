"""`Flag`: what one thread sets and another waits for, whenever Ctrl-C strikes.

`threading.Event` won't do. An exception that a signal brings into its `wait` may come while it
holds the lock that `set` needs (its lock is taken by a function in Python, and between that
function's end and the `with` is a moment): the thread that sets it then waits for ever. Here the
only lock is C's, taken and given in single calls.
"""

from __future__ import annotations

import threading


class Flag:
    """Set once. One thread waits, any number of times."""

    def __init__(self) -> None:
        self._is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the other thread go on. Again is fine; by one thread at a time."""
        if not self._is_set:
            self._is_set = True
            self._lock.release()

    def is_set(self) -> bool:
        """Whether it was."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait, so long at most; whether it is set."""
        if not self._is_set:
            # A signal may take from us that we had it, hence the flag beside the lock.
            self._lock.acquire(timeout=seconds)
        return self._is_set
