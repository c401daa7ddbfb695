"""`RequestQueue`: one virtqueue of the block device in one run.

A batch of requests is popped and judged; those at its head that need no waiting (a read from the
page cache) are served on the spot; the rest goes to a thread, all of it at once and in order. While
the thread has it, no other request of this queue is looked at: a driver that wants its reads not to
wait for its flushes has more than one queue.

The order matters for one thing. When a run is cancelled, the thread stops between two requests;
what it did is reported to the driver, and the rest, which is the end of what was popped, goes back
into the queue (`VirtQueue.rewind`) and is served when the queue goes on. Nothing is lost in a
pause, and nothing touches guest memory when `serve` has returned.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from microvm.errors import GuestError
from microvm_devices.blk import limits
from microvm_devices.blk.request import PENDING, Request, judge, parse
from microvm_devices.blk.worker import Worker

if TYPE_CHECKING:
    from microvm.abc import ActiveQueue
    from microvm.virtio.rate_limit import RateLimiter
    from microvm_devices.blk.counters import BlkCounters
    from microvm_devices.blk.executor import Executor


class RequestQueue:
    """See the module.

    Args:
        active: The queue.
        executor: Serves requests.
        size: The disk's, in bytes.
        read_only: Whether the disk is.
        features: What was negotiated.
        limiter: The device's, shared by its queues.
        counters: Likewise.
    """

    def __init__(
        self,
        active: ActiveQueue,
        executor: Executor,
        *,
        size: int,
        read_only: bool,
        features: int,
        limiter: RateLimiter,
        counters: BlkCounters,
    ) -> None:
        self._active = active
        self._executor = executor
        self._size = size
        self._read_only = read_only
        self._features = features
        self._limiter = limiter
        self._counters = counters
        self._worker = Worker()
        self._broken: GuestError | None = None

    async def serve(self) -> None:
        """Serve the queue until cancelled.

        Raises:
            GuestError: the driver broke a rule; what it had asked for before is answered.
        """
        queue, doorbell, limited = self._active.queue, self._active.doorbell, self._limiter.limits
        room = limits.TURN_BYTES
        try:
            while True:
                queue.disable_notification()
                if limited:
                    await self._wait_for_tokens()
                batch, room = self._take(room)
                if batch and await self._serve_batch(batch):
                    room = limits.TURN_BYTES
                elif room <= 0:
                    room = limits.TURN_BYTES
                    await trio.lowlevel.checkpoint()
                elif self._broken is not None:
                    raise self._broken
                elif not batch and not queue.enable_notification():
                    await doorbell.wait()
                    room = limits.TURN_BYTES
        finally:
            self._worker.close()

    async def _wait_for_tokens(self) -> None:
        while wait := self._limiter.delay_s(trio.current_time()):
            self._counters.throttled += 1
            await trio.sleep(wait)

    def _take(self, room: int) -> tuple[deque[Request], int]:
        """Pop requests until there is no room for more, the queue is empty, or the limit reached.

        Or until a rule is broken, which is raised when the requests before it are answered.

        Returns:
            The requests, and what is left of the room.
        """
        pop, limiter = self._active.queue.pop, self._limiter
        size, read_only, features = self._size, self._read_only, self._features
        batch: deque[Request] = deque()
        limited = limiter.limits
        if self._broken is not None:
            return batch, room
        try:
            while room > 0:
                if limited and batch and limiter.delay_s(trio.current_time()):
                    break
                chain = pop()
                if chain is None:
                    break
                request = parse(chain)
                judge(request, size=size, read_only=read_only, features=features)
                batch.append(request)
                room -= request.length + limits.REQUEST_COST
                if limited:
                    # What is refused already moves no bytes, whatever size it names.
                    weight = request.weight if request.status == PENDING else 0
                    limiter.take(trio.current_time(), bytes=weight)
        except GuestError as error:
            self._broken = error
        return batch, room

    async def _serve_batch(self, batch: deque[Request]) -> bool:
        """Serve and answer them, and say whether other tasks could run meanwhile."""
        try_now = self._executor.try_now
        while batch and try_now(batch[0]):
            self._answer(batch.popleft())
        # The driver may go on with what it has, also while the thread works.
        self._active.notify()
        if not batch:
            return False
        self._counters.handed_over += 1
        ending = False

        def end() -> None:
            nonlocal ending
            ending = True

        try:
            await self._worker.run(
                lambda: self._executor.execute(batch, lambda: ending), when_cancelled=end
            )
        finally:
            while batch and batch[0].status != PENDING:
                self._answer(batch.popleft())
            self._active.notify()
        return True

    def _answer(self, request: Request) -> None:
        self._active.queue.add_used(request.head, request.finish())
        self._counters.count(request)
