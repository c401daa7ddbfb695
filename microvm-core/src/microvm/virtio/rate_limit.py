"""A token bucket on bytes and on operations: how much of the host one device may use.

Pure: the caller says what time it is. A bucket holds at most its burst, fills at its rate, and
each request takes what it needs. Before a request is taken from its queue the device asks how
long to wait::

    if wait := limiter.delay_s(trio.current_time()):
        await trio.sleep(wait)
    else:
        chain = queue.pop()
        ...
        limiter.take(trio.current_time(), bytes=chain.readable_len + chain.writable_len)

How large a request is, a device often knows only when it has it, and then it is too late to
leave it. So a bucket may go into debt: whoever finds anything in it passes, however large, and
the next one waits until that is paid for. Over any window of t seconds the requests but the last
one together stay below rate * t + burst. A caller who does know the size names it in
`delay_s`, and then the last one is within that bound too, unless it is larger than the burst.

All arithmetic is on whole numbers (units of a byte and a nanosecond), so nothing is lost or won
by rounding, however long a device runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from microvm.config import RateLimit

_NS: Final = 1_000_000_000
_SHORTEST_DELAY_NS: Final = 1_000
"""A sleep that costs more than it waits for is of no use to anybody."""


class _Bucket:
    """One kind of token.

    Args:
        rate: Tokens a second; at least 1.
        burst: What it holds when full. None: what flows in within a second.
    """

    __slots__ = ("_capacity", "_last_ns", "_level", "_rate")

    def __init__(self, rate: int, burst: int | None) -> None:
        self._rate = rate
        self._capacity = (rate if burst is None else burst) * _NS
        self._level = self._capacity
        self._last_ns: int | None = None

    def _fill(self, now_ns: int) -> None:
        if self._last_ns is None:
            self._last_ns = now_ns
        elif now_ns > self._last_ns:
            flowed = (now_ns - self._last_ns) * self._rate
            self._level = min(self._capacity, self._level + flowed)
            self._last_ns = now_ns
        # A clock that goes back brings nothing, and takes nothing away.

    def delay_ns(self, now_ns: int, wanted: int) -> int:
        self._fill(now_ns)
        missing = min(wanted * _NS, self._capacity) - self._level
        return max(_SHORTEST_DELAY_NS, -(-missing // self._rate)) if missing > 0 else 0

    def take(self, now_ns: int, amount: int) -> None:
        self._fill(now_ns)
        self._level -= amount * _NS


class RateLimiter:
    """What a device, or one direction of it, may do.

    Args:
        limit: The rates and bursts; None, or a rate of None, limits nothing.
    """

    __slots__ = ("_bytes", "_ops")

    def __init__(self, limit: RateLimit | None) -> None:
        self._bytes: _Bucket | None = None
        self._ops: _Bucket | None = None
        if limit is not None:
            if limit.bytes_per_s is not None:
                self._bytes = _Bucket(limit.bytes_per_s, limit.burst_bytes)
            if limit.ops_per_s is not None:
                self._ops = _Bucket(limit.ops_per_s, limit.burst_ops)

    @property
    def limits(self) -> bool:
        """Whether there is anything to wait for, ever."""
        return self._bytes is not None or self._ops is not None

    def delay_s(self, now: float, *, bytes: int = 1, ops: int = 1) -> float:  # noqa: A002
        """How long to wait before the next request: 0.0 is go.

        Args:
            now: The time in seconds, by any clock; always the same one.
            bytes: How large the next request is, where that is known. One that is larger than
                the burst passes when the bucket is full.
            ops: How many requests it is.
        """
        if self._bytes is None and self._ops is None:
            return 0.0
        now_ns = math.floor(now * _NS)
        longest = 0
        if self._bytes is not None:
            longest = self._bytes.delay_ns(now_ns, bytes)
        if self._ops is not None:
            longest = max(longest, self._ops.delay_ns(now_ns, ops))
        # A delay always moves the clock on, also one that is a float and has run for long.
        return max(longest / _NS, math.ulp(now)) if longest else 0.0

    def take(self, now: float, *, bytes: int, ops: int = 1) -> None:  # noqa: A002
        """Count a request that was served, or is about to be; never refused.

        Args:
            now: As in `delay_s`.
            bytes: Its size.
            ops: How many requests it is.
        """
        if self._bytes is None and self._ops is None:
            return
        now_ns = math.floor(now * _NS)
        if self._bytes is not None:
            self._bytes.take(now_ns, bytes)
        if self._ops is not None:
            self._ops.take(now_ns, ops)
