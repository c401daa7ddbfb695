"""From the vCPUs' threads to the trio thread.

Two rules keep this free of deadlocks:

* the trio thread never waits for a vCPU's thread by blocking: it awaits;
* a vCPU's thread blocks in `ask` only, and `ask` returns when the trio thread has answered or
  when it will answer no more (`close`).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

Call = Callable[[], None]


class LoopCalls:
    """Calls made from other threads, run on the trio thread in the order in which they came.

    They wait until `attach`, so that vCPUs may run before there is a loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: trio.lowlevel.TrioToken | None = None
        self._waiting: deque[Call] = deque()
        self._closed = False
        self._asking: set[threading.Event] = set()

    @property
    def attached(self) -> bool:
        """Whether there is a loop to call into."""
        return self._token is not None

    def attach(self, token: trio.lowlevel.TrioToken) -> None:
        """Let the calls through: from the trio thread, once whatever they use is there."""
        with self._lock:
            self._token = token
            waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call()

    def post(self, call: Call) -> None:
        """Have `call` run on the trio thread, soon. Dropped after `close`. From any thread."""
        with self._lock:
            if self._closed:
                return
            if self._token is None:
                self._waiting.append(call)
                return
            # Within the lock, so that calls keep their order; it takes no lock of ours. A loop that
            # has ended without `close` (trio.RunFinishedError) hears nothing any more.
            with contextlib.suppress(RuntimeError):
                self._token.run_sync_soon(call)

    def ask(self, call: Callable[[Call], None]) -> None:
        """Have `call(answered)` run there, and wait until `answered` was called, or for `close`.

        From a vCPU's thread, never from the trio thread.
        """
        answered = threading.Event()
        with self._lock:
            if self._closed:
                return
            self._asking.add(answered)
        self.post(lambda: call(answered.set))
        answered.wait()
        with self._lock:
            self._asking.discard(answered)

    def close(self) -> None:
        """Drop later calls and let go of who waits. From the trio thread."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            asking = list(self._asking)
        for answered in asking:
            answered.set()
