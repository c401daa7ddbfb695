"""Which of a tunnel's states its user is told, and when. Pure: it is told the time.

A state that says that the tunnel is down waits until the way into it is shut, so that whoever hears
of it finds the way shut. And a daemon that was taken over may change its state as often as it
likes: of a flood the last one is told, and how it ended in any case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from microvm_guest.openvpn.states import ENDED
from microvm_guest.openvpn.status import LogBudget, VpnStatus

MAX_WAITING: Final = 32
"""States that wait to be told; of more, the first are left out."""
PER_S: Final = 2.0
BURST: Final = 100.0
"""So many changes are told at once; an attempt to connect has half a dozen."""


class Telling:
    """What one run has become, on its way to its user.

    Args:
        tell: Called with each state that is told; none twice in a row but for its byte counts.
        come_back: Called when some states are told late: `go_on` is wanted, again and again, while
            `is_late`.
    """

    def __init__(self, tell: Callable[[VpnStatus], None], come_back: Callable[[], None]) -> None:
        self._tell = tell
        self._come_back = come_back
        self._budget = LogBudget(per_s=PER_S, burst=BURST)
        self._waiting: deque[VpnStatus] = deque(maxlen=MAX_WAITING)
        self._told: VpnStatus | None = None
        self._holds = 0
        self._late = False

    @property
    def is_late(self) -> bool:
        """Whether of what waits only the last will be told, when there is budget again."""
        return self._late

    def put(self, status: VpnStatus, now: float) -> None:
        """It has become this."""
        self._waiting.append(status)
        self.go_on(now)

    def hold(self) -> None:
        """Tell nothing until this is released, as often as it was held."""
        self._holds += 1

    def release(self, now: float) -> None:
        """What `hold` was for is done."""
        self._holds -= 1
        self.go_on(now)

    def finish(self, now: float) -> None:
        """Hold nothing back any more: nothing else will come."""
        self._holds = 0
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Tell what may be told at this time, in seconds."""
        while self._waiting and not self._holds:
            status = self._waiting.popleft()
            if self._late and self._waiting:
                continue
            told = attrs.evolve(status, received_bytes=0, sent_bytes=0)
            if told != self._told:
                if status.state not in ENDED and not self._budget.take(now):
                    self._waiting.appendleft(status)
                    if self._late:
                        return
                    self._late = True
                    self._come_back()
                    continue
                self._told = told
                self._tell(status)
            self._late = False
