"""A tunnel as its user sees it: one value for now, and events for what happens."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import attrs
import trio

from microvm_guest.openvpn.states import VpnReason, VpnState


@attrs.frozen(kw_only=True)
class VpnStatus:
    """How a tunnel is."""

    state: VpnState = VpnState.STOPPED
    reason: VpnReason | None = None
    """Of a tunnel that failed, or that is not up yet and has tried: why."""
    detail: str = ""
    """The same in a sentence, or the server's own words."""
    since: float = 0.0
    """When it came into this state, in seconds since 1970."""
    local_ip: str | None = None
    """The guest's address in the tunnel, while it is up; and the next."""
    local_ip6: str | None = None
    server: str | None = None
    """Whom it is connected to, or tries to: the configuration's name and port."""
    dns: tuple[str, ...] = ()
    """Name servers that are asked, through the tunnel."""
    received_bytes: int = 0
    sent_bytes: int = 0
    connects: int = 0
    """How often it came up."""


@attrs.frozen(kw_only=True)
class StateChanged:
    """The tunnel came into another state, or into the same for another reason."""

    at: float
    """Seconds since 1970; of the host's clock."""
    status: VpnStatus


@attrs.frozen(kw_only=True)
class LogLine:
    """OpenVPN has said something."""

    at: float
    flags: str
    """I, N, W, D or F, for information, error, warning, debugging, fatal error."""
    text: str


VpnEvent = StateChanged | LogLine


@attrs.define
class LogBudget:
    """How much of a flood of lines or states is passed on: a token bucket, told the time. Pure."""

    per_s: float = 20.0
    burst: float = 200.0
    left_out: int = attrs.field(default=0, init=False)
    """Lines refused since the last that was let through."""
    _tokens: float = attrs.field(init=False)
    _at: float | None = attrs.field(default=None, init=False)

    @_tokens.default
    def _full(self) -> float:
        return self.burst

    def take(self, now: float) -> bool:
        """Whether one more may pass at this time, in seconds."""
        if self._at is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.per_s)
        self._at = now
        if self._tokens < 1:
            self.left_out += 1
            return False
        self._tokens -= 1
        self.left_out = 0
        return True


class EventFeed:
    """Events for one reader, in order. One that reads too slowly loses the oldest.

    Args:
        bound: How many are kept for it.
    """

    BOUND: Final = 512

    def __init__(self, bound: int = BOUND) -> None:
        self._kept: deque[VpnEvent] = deque(maxlen=bound)
        self._lot = trio.lowlevel.ParkingLot()
        self._over = False
        self.lost = 0
        """How many have been lost."""

    def put(self, event: VpnEvent) -> None:
        """Add one; never waits."""
        self.lost += len(self._kept) == self._kept.maxlen
        self._kept.append(event)
        self._lot.unpark_all()

    def end(self) -> None:
        """There will be no more."""
        self._over = True
        self._lot.unpark_all()

    def __aiter__(self) -> AsyncIterator[VpnEvent]:
        return self

    async def __anext__(self) -> VpnEvent:
        await trio.lowlevel.checkpoint()
        while not self._kept:
            if self._over:
                raise StopAsyncIteration
            await self._lot.park()
        return self._kept.popleft()
