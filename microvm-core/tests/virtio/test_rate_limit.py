"""Token buckets: what may pass, and when."""

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microvm.config import RateLimit
from microvm.virtio.rate_limit import RateLimiter

KIB = 1024
SLACK = 2
"""Bytes by which the tests' own floats may be off."""

rates = st.integers(1, 1 << 40)
bursts = st.none() | st.integers(1, 1 << 32)
sizes = st.lists(st.integers(0, 1 << 34), min_size=1, max_size=30)
steps = st.lists(st.floats(0, 5), min_size=1, max_size=30)


def pass_all(
    limiter: RateLimiter, sizes: list[int], idle: list[float], *, known: bool
) -> list[tuple[float, int]]:
    """When each request passes, if each waits for as long as it is told to."""
    now = 1000.0
    passed = []
    for size, pause in zip(sizes, itertools.cycle(idle)):
        now += pause
        for _ in range(3):
            delay = limiter.delay_s(now, bytes=size) if known else limiter.delay_s(now)
            now += delay
            if not delay:
                break
        else:
            pytest.fail("Whoever has waited for as long as it was told has to wait no longer.")
        limiter.take(now, bytes=size)
        passed.append((now, size))
    return passed


def test_no_limit_lets_everything_pass() -> None:
    for limiter in (RateLimiter(None), RateLimiter(RateLimit())):
        assert not limiter.limits
        limiter.take(0.0, bytes=1 << 60, ops=1 << 60)
        assert limiter.delay_s(0.0, bytes=1 << 60) == 0.0


def test_a_full_bucket_passes_its_burst_and_then_the_rate_holds() -> None:
    limiter = RateLimiter(RateLimit(bytes_per_s=1000, burst_bytes=500))
    assert limiter.delay_s(0.0, bytes=500) == 0.0
    limiter.take(0.0, bytes=500)
    assert limiter.delay_s(0.0, bytes=250) == 0.25
    assert limiter.delay_s(0.125, bytes=250) == 0.125
    assert limiter.delay_s(0.25, bytes=250) == 0.0


def test_without_a_burst_given_the_bucket_holds_one_second() -> None:
    limiter = RateLimiter(RateLimit(ops_per_s=10))
    for _ in range(10):
        assert limiter.delay_s(0.0) == 0.0
        limiter.take(0.0, bytes=0)
    assert limiter.delay_s(0.0) == pytest.approx(0.1)


def test_a_request_larger_than_the_burst_passes_once_and_is_paid_for() -> None:
    limiter = RateLimiter(RateLimit(bytes_per_s=KIB, burst_bytes=KIB))
    assert limiter.delay_s(0.0, bytes=10 * KIB) == 0.0
    limiter.take(0.0, bytes=10 * KIB)
    assert limiter.delay_s(0.0) == pytest.approx(9, abs=0.01)
    assert limiter.delay_s(8.9) > 0
    assert limiter.delay_s(9.01) == 0.0


def test_the_bucket_that_is_emptier_says_how_long() -> None:
    limiter = RateLimiter(RateLimit(bytes_per_s=1000, ops_per_s=10, burst_ops=1))
    limiter.take(0.0, bytes=1)
    assert limiter.delay_s(0.0) == pytest.approx(0.1)
    limiter.take(0.0, bytes=1999, ops=0)
    assert limiter.delay_s(0.0) == pytest.approx(1.0, abs=0.01)


def test_a_long_rest_fills_the_bucket_and_no_more() -> None:
    limiter = RateLimiter(RateLimit(bytes_per_s=100, burst_bytes=100))
    limiter.take(0.0, bytes=100)
    limiter.take(1e9, bytes=100)
    assert limiter.delay_s(1e9, bytes=100) == pytest.approx(1.0)


@example(rate=1, burst=None, sizes=[1, 1 << 34, 0], idle=[0.0], known=False)
@given(rate=rates, burst=bursts, sizes=sizes, idle=steps, known=st.booleans())
def test_over_any_window_the_rate_and_the_burst_hold(
    rate: int, burst: int | None, sizes: list[int], idle: list[float], known: bool
) -> None:
    limiter = RateLimiter(RateLimit(bytes_per_s=rate, burst_bytes=burst))
    passed = pass_all(limiter, sizes, idle, known=known)
    full = rate if burst is None else burst
    for first in range(len(passed)):
        total = 0
        for when, size in passed[first:]:
            # What has passed before the last one was within the bound; and so is the last, if
            # its size was named and a full bucket is enough for it.
            allowed = rate * (when - passed[first][0] + 1e-6) + full + SLACK
            assert total <= allowed
            total += size
            if known and size <= full:
                assert total <= allowed


@given(rate=rates, burst=bursts, sizes=sizes)
def test_a_device_that_is_always_busy_gets_its_whole_rate(
    rate: int, burst: int | None, sizes: list[int]
) -> None:
    limiter = RateLimiter(RateLimit(bytes_per_s=rate, burst_bytes=burst))
    passed = pass_all(limiter, sizes, [0.0], known=False)
    full = rate if burst is None else burst
    before_last = sum(size for _, size in passed[:-1])
    due = max(0.0, (before_last - full + min(1, full)) / rate)
    # Each wait is rounded up to what the clock can tell apart.
    tick = 1e-5 + 2 * math.ulp(passed[-1][0])
    assert passed[-1][0] - 1000.0 <= due + tick * len(passed)


@given(
    rate=rates,
    times=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
    size=st.integers(0, 1 << 30),
)
def test_time_going_backwards_is_harmless(rate: int, times: list[float], size: int) -> None:
    limiter = RateLimiter(RateLimit(bytes_per_s=rate, burst_bytes=size + 1))
    straight = RateLimiter(RateLimit(bytes_per_s=rate, burst_bytes=size + 1))
    for index, now in enumerate(times):
        limiter.take(now, bytes=size)
        straight.take(max(times[: index + 1]), bytes=size)
        latest = max(times[: index + 1])
        assert limiter.delay_s(now) == straight.delay_s(latest)
        debt = (index + 1) * size + 2
        assert limiter.delay_s(now) <= debt / rate + 1e-5
