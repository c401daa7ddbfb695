"""`Worker`: a thread for what may block, one job at a time.

Measured: a job costs 24 us from the trio task and back to it, 47 us by `trio.to_thread`, which
looks for a thread and a place among all the program's threads each time. The thread is there from
the first job to `close`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import trio

Job = Callable[[], None]


class Worker:
    """See the module. Everything is for the trio thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, trio.Event, trio.lowlevel.TrioToken] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    async def run(self, job: Job, *, when_cancelled: Callable[[], None]) -> None:
        """Have `job` done, and return, or raise, when it has ended, whatever happens meanwhile.

        Args:
            job: Called in the thread.
            when_cancelled: Called once when the caller is cancelled: the job should come to its
                end. `trio.Cancelled` is raised only when it has.
        """
        if self._thread is None:
            # A daemon: it is idle whenever the interpreter ends without `close`.
            self._thread = threading.Thread(target=self._work, name="microvm-blk", daemon=True)
            self._thread.start()
        done = trio.Event()
        self._jobs.put((job, done, trio.lowlevel.current_trio_token()))
        # The thread alone knows the job from here on: it must hold no view of guest memory when
        # it says that it is done, and neither may we by then.
        del job
        try:
            await done.wait()
        except BaseException:
            # Cancelled, or a KeyboardInterrupt that came to this task.
            when_cancelled()
            with trio.CancelScope(shield=True):
                await done.wait()
            raise
        finally:
            failed, self._failed = self._failed, None
            if failed is not None:
                raise failed

    def close(self) -> None:
        """End the thread, which is idle."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done, token = entry
            try:
                job()
            except BaseException as error:  # raised where the job was ordered
                self._failed = error
            del entry, job
            token.run_sync_soon(done.set)
            del done, token
