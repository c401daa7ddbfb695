"""The transmit side: what the driver sends, from where it lies to a link.

A batch is popped, looked at, and given to the link at once. What the link does not take stays with
us, in order, until it does; meanwhile nothing more is popped, so that no more than a batch is ever
held, and the driver's own queue fills up and holds its programs back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from microvm.errors import NetLinkDown
from microvm_devices.net.packet import (
    HEAD_BYTES,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_PIECES,
    Fault,
    TransmitRules,
    gather,
    skip,
)

if TYPE_CHECKING:
    from microvm.abc import ActiveQueue, Frame
    from microvm.virtio.chain import DescriptorChain
    from microvm.virtio.rate_limit import RateLimiter
    from microvm_devices.net.counts import Counts
    from microvm_devices.net.port import Port

BATCH: Final = 64
"""Frames popped before they are sent and other tasks are let run: up to 4 MiB."""


class _Taken(NamedTuple):
    """A chain that was popped and not handed back yet."""

    head: int
    frame: Frame | None
    """None: it goes nowhere."""
    length: int


class TransmitFlow:
    """From one transmit queue to one link.

    Args:
        port: The link.
        vnet_header: Whether its frames come with a header of virtio's.
        active: The queue.
        rules: What is let through.
        limiter: How much the guest may send.
        counts: Counted there.
    """

    def __init__(
        self,
        active: ActiveQueue,
        port: Port,
        *,
        vnet_header: bool,
        rules: TransmitRules,
        limiter: RateLimiter,
        counts: Counts,
    ) -> None:
        self._active = active
        self._queue = active.queue
        self._port = port
        self._link = port.link
        self._start = 0 if vnet_header else HEADER_BYTES
        self._rules = rules
        self._limiter = limiter if limiter.limits else None
        self._counts = counts
        self._taken: deque[_Taken] = deque()

    async def run(self) -> None:
        """Send for ever.

        Raises:
            QueueError: the driver broke a rule.
        """
        queue, active = self._queue, self._active
        while True:
            await active.doorbell.wait()
            busy = True
            while busy:
                queue.disable_notification()
                wait_s = self._take_batch()
                blocked = self._send()
                active.notify()
                if blocked:
                    await self._wait_writable()
                elif wait_s:
                    self._counts.throttled += 1
                    await trio.sleep(wait_s)
                else:
                    await trio.lowlevel.checkpoint()
                    busy = queue.enable_notification()

    def _take_batch(self) -> float:
        """Pop and look at frames, until a batch of them is there.

        Returns:
            How long to wait, where a rate limit ended it; else 0.
        """
        pop, look, taken = self._queue.pop, self._look, self._taken
        limiter = self._limiter
        while len(taken) < BATCH:
            if limiter is not None and (wait_s := limiter.delay_s(trio.current_time())):
                return wait_s
            chain = pop()
            if chain is None:
                return 0.0
            entry = look(chain)
            taken.append(entry)
            if limiter is not None:
                limiter.take(trio.current_time(), bytes=entry.length)
        return 0.0

    def _look(self, chain: DescriptorChain) -> _Taken:
        """The frame in a chain, as it is sent."""
        size = chain.readable_len
        length = size - HEADER_BYTES
        if size < HEAD_BYTES:
            return self._fault(chain, Fault.SHORT)
        if length > MAX_FRAME_BYTES:
            return self._fault(chain, Fault.LONG)
        readable = chain.readable
        first = readable[0]
        # A guest's kernel puts both headers into one buffer, or cuts between them.
        if len(first) > HEAD_BYTES:
            head: bytes | Fault = self._rules.head(bytes(first[:HEAD_BYTES]), length)
            rest = [first[HEAD_BYTES:], *readable[1:]]
        else:
            head = self._rules.head(gather(readable, HEAD_BYTES), length)
            rest = skip(readable, HEAD_BYTES)
        if isinstance(head, Fault):
            return self._fault(chain, head)
        if self._start:
            head = head[self._start :]
        if len(rest) > MAX_PIECES:
            return _Taken(chain.head, (head, b"".join(rest)), length)
        return _Taken(chain.head, (head, *rest), length)

    def _fault(self, chain: DescriptorChain, fault: Fault) -> _Taken:
        self._counts.fault(fault)
        return _Taken(chain.head, None, 0)

    def _send(self) -> bool:
        """Give the link what was taken, and hand back what it took; whether to wait for it."""
        taken = self._taken
        link = self._link
        if not taken:
            return link.blocked and not self._port.down
        frames = [entry.frame for entry in taken if entry.frame is not None]
        counts = self._counts
        sent = 0
        blocked = False
        if self._port.down:
            counts.sent_dropped += len(frames)
        elif frames:
            try:
                sent = link.send(frames)
                blocked = sent < len(frames) or link.blocked
            except NetLinkDown as error:
                self._port.put_down(error)
                counts.sent_dropped += len(frames)
        used = []
        lost = self._port.down
        counts.sent_frames += sent
        while taken:
            head, frame, length = taken[0]
            if frame is not None and not lost:
                if not sent:
                    break
                sent -= 1
                counts.sent_bytes += length
            taken.popleft()
            used.append((head, 0))
        self._queue.add_used_together(used)
        return blocked

    async def _wait_writable(self) -> None:
        try:
            await self._port.wait_writable()
        except NetLinkDown as error:
            self._port.put_down(error)
