"""The receive side: a link's frames, straight into the buffers that the driver offers.

A frame is received when there is room for the longest one, and then it is written where it stays.
Where there is less, it takes the way through `ReceiveFlow`'s own buffer, and is held there until
the driver has offered enough: one frame, no more. With no buffer at all nothing is received, and
what is under the link holds or drops what comes (see `microvm.abc.net`).
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import NetLinkDown, QueueError
from microvm_devices.net.packet import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    NUM_BUFFERS_AT,
    PLAIN,
    ReceiveRules,
    gather,
    scatter,
    skip,
)

if TYPE_CHECKING:
    from microvm.abc import ActiveQueue
    from microvm.virtio.chain import DescriptorChain
    from microvm.virtio.rate_limit import RateLimiter
    from microvm_devices.net.counts import Counts
    from microvm_devices.net.port import Port

BATCH: Final = 64
"""Frames received before other tasks are let run."""

_NUM_BUFFERS: Final = tuple(count.to_bytes(2, "little") for count in range(257))


class ReceiveQueue:
    """A receive queue, and the buffers taken from it that no frame lies in yet.

    Args:
        active: The queue.
        mergeable: Whether a frame may lie in several of its buffers.
    """

    def __init__(self, active: ActiveQueue, *, mergeable: bool) -> None:
        self._active = active
        self._queue = active.queue
        self.mergeable = mergeable
        self._chains: deque[DescriptorChain] = deque()
        self.views: list[memoryview] = []
        """All bytes of the buffers taken, in order."""
        self.room = 0
        """How many that are."""
        self._starved = False
        self._refilled: trio.Event | None = None
        """There while one flow waits for the doorbell; the others wait for that one."""
        # The device looks by itself when it has something to give.
        self._queue.disable_notification()

    def collect(self, wanted: int) -> bool:
        """Take buffers until one frame of `wanted` bytes has room; False if there are too few.

        Then the doorbell has been asked for, unless they are `exhausted`.

        Raises:
            QueueError: the driver broke a rule.
        """
        if self.room >= wanted:
            return True
        if not self.mergeable and self.room:
            return False
        queue = self._queue
        while self.room < wanted:
            # One system call takes 1024 pieces: what is here, and one chain of as many more.
            if len(self.views) >= queue.size:
                return False
            chain = queue.pop()
            if chain is None:
                if self._starved:
                    return False
                self._starved = True
                if not queue.enable_notification():
                    return False
                continue
            if self._starved:
                self._starved = False
                queue.disable_notification()
            if chain.writable_len < HEADER_BYTES:
                # 5.1.6.3.1: each buffer holds at least the header.
                raise QueueError(f"A receive buffer has {chain.writable_len} bytes to write to.")
            self._chains.append(chain)
            self.views += chain.writable
            self.room += chain.writable_len
            if not self.mergeable:
                return self.room >= wanted
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the driver can't offer more for the next frame than was taken already."""
        if not self.mergeable:
            return self.room > 0
        return len(self.views) >= self._queue.size

    def use(self, length: int) -> int:
        """Hand back the buffers that a frame of `length` bytes, header included, lies in.

        Its header is complete but for num_buffers, which is written here.
        """
        chains, used, left = self._chains, [], length
        views = 0
        first = self.views
        while True:
            chain = chains.popleft()
            size = chain.writable_len
            self.room -= size
            views += len(chain.writable)
            if left <= size:
                used.append((chain.head, left))
                break
            used.append((chain.head, size))
            left -= size
        count = len(used)
        if len(first[0]) >= HEADER_BYTES:
            first[0][NUM_BUFFERS_AT:HEADER_BYTES] = _num_buffers(count)
        else:
            scatter(skip(first, NUM_BUFFERS_AT), _num_buffers(count))
        del self.views[:views]
        if count == 1:
            self._queue.add_used(*used[0])
        else:
            self._queue.add_used_together(used)
        return count

    def notify(self) -> None:
        """Interrupt the driver if it wants to be: once a batch."""
        self._active.notify()

    async def wait_buffers(self) -> None:
        """Return when the driver may have offered more; several flows may wait."""
        if self._refilled is not None:
            await self._refilled.wait()
            return
        self._refilled = refilled = trio.Event()
        try:
            await self._active.doorbell.wait()
        finally:
            # Cancelled or not: one of those who waited for us takes our place, if it has to.
            self._refilled = None
            refilled.set()


def _num_buffers(count: int) -> bytes:
    return _NUM_BUFFERS[count] if count < len(_NUM_BUFFERS) else count.to_bytes(2, "little")


class _Outcome(enum.Enum):
    MORE = enum.auto()
    EMPTY = enum.auto()
    """The link has nothing."""
    STARVED = enum.auto()
    """The driver offers too little."""
    THROTTLED = enum.auto()


class ReceiveFlow:
    """From one link to one receive queue.

    Args:
        port: The link.
        vnet_header: Whether its frames come with a header of virtio's.
        queue: Where they go.
        rules: What the driver takes.
        longest: The longest frame to be had, header included.
        limiter: How much the guest may receive.
        counts: Counted there.
    """

    def __init__(
        self,
        port: Port,
        *,
        vnet_header: bool,
        queue: ReceiveQueue,
        rules: ReceiveRules,
        longest: int,
        limiter: RateLimiter,
        counts: Counts,
    ) -> None:
        self._port = port
        self._link = port.link
        self._vnet_header = vnet_header
        self._queue = queue
        self._rules = rules
        self._longest = longest
        self._limiter = limiter if limiter.limits else None
        self._counts = counts
        self._delay_s = 0.0
        self._held: bytes | None = None
        self._scratch = memoryview(bytearray())
        # Behind the driver's buffers: what is written into it shows that a frame was cut off.
        self._spare = memoryview(bytearray(1))

    async def run(self) -> None:
        """Receive until the link is down, or for ever."""
        queue, link = self._queue, self._link
        try:
            while True:
                outcome = self._fill()
                queue.notify()
                if outcome is _Outcome.EMPTY:
                    await link.wait_readable()
                elif outcome is _Outcome.STARVED:
                    await queue.wait_buffers()
                elif outcome is _Outcome.THROTTLED:
                    self._counts.throttled += 1
                    await trio.sleep(self._delay_s)
                else:
                    await trio.lowlevel.checkpoint()
        except NetLinkDown as error:
            queue.notify()
            self._port.put_down(error)

    def _fill(self) -> _Outcome:
        """Receive a batch of frames at most."""
        for _ in range(BATCH):
            limiter = self._limiter
            if limiter is not None:
                self._delay_s = limiter.delay_s(trio.current_time())
                if self._delay_s:
                    return _Outcome.THROTTLED
            if self._held is None and self._queue.collect(self._longest):
                length = self._receive_in_place()
            else:
                length = self._receive_held()
            if isinstance(length, _Outcome):
                return length
            if limiter is not None:
                limiter.take(trio.current_time(), bytes=length)
        return _Outcome.MORE

    def _receive_in_place(self) -> int | _Outcome:
        """A frame into the driver's buffers, which have room for the longest.

        Returns:
            Its length without a header; 0 if it was dropped.
        """
        queue = self._queue
        views = queue.views
        if self._vnet_header:
            length = self._link.receive([*views, self._spare])
            if length is None:
                return _Outcome.EMPTY
            if length <= HEADER_BYTES or length > queue.room:
                return self._drop()
            header = self._rules.header(gather(views, HEADER_BYTES))
            if header is None:
                return self._drop()
            _put_header(views, header)
        else:
            length = self._link.receive([*skip(views, HEADER_BYTES), self._spare])
            if length is None:
                return _Outcome.EMPTY
            length += HEADER_BYTES
            if length == HEADER_BYTES or length > queue.room:
                return self._drop()
            _put_header(views, PLAIN)
        return self._use(length)

    def _receive_held(self) -> int | _Outcome:
        """A frame by way of our own buffer; as `_receive_in_place`."""
        queue = self._queue
        frame = self._held
        if frame is None:
            if not queue.room:
                return _Outcome.STARVED
            if not self._scratch:
                # One byte more than any frame has, so that one cut off is seen.
                self._scratch = memoryview(bytearray(HEADER_BYTES + MAX_FRAME_BYTES + 1))
            start = 0 if self._vnet_header else HEADER_BYTES
            length = self._link.receive([self._scratch[start:]])
            if length is None:
                return _Outcome.EMPTY
            length += start
            if not HEADER_BYTES < length <= self._longest:
                return self._drop()
            header = self._rules.header(bytes(self._scratch[:HEADER_BYTES]))
            if header is None:
                return self._drop()
            # num_buffers is written when the buffers are known.
            frame = header + self._scratch[NUM_BUFFERS_AT:length]
        if not queue.collect(len(frame)):
            if queue.exhausted:
                self._held = None
                return self._drop()
            self._held = frame
            return _Outcome.STARVED
        self._held = None
        scatter(queue.views, frame)
        return self._use(len(frame))

    def _use(self, length: int) -> int:
        self._queue.use(length)
        length -= HEADER_BYTES
        counts = self._counts
        counts.received_frames += 1
        counts.received_bytes += length
        return length

    def _drop(self) -> int:
        self._counts.received_dropped += 1
        return 0


def _put_header(views: list[memoryview], header: bytes) -> None:
    """`header`, with num_buffers or without, at the start of the views."""
    if len(views[0]) >= len(header):
        views[0][: len(header)] = header
    else:
        scatter(views, header)
