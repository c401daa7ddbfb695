"""Bounds on how long calls may take, as blocks: a call within one ends when its time is up.

As with trio's scopes of the same names, what counts is the block and not each call, blocks nest,
and a block in which no call was cut short ends as usual, however long it took. They belong to the
context (`contextvars`): another thread has none, `asyncio.to_thread` takes them along.
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from types import TracebackType

from microvm.errors import MicrovmError

_innermost: ContextVar[Deadline | None] = ContextVar("microvm_sync_deadline", default=None)


class TooSlowError(MicrovmError, TimeoutError):
    """A call within `fail_after` did not end in time; what it was about was cancelled."""

    code = "sync.too_slow"

    def __init__(self, deadline: Deadline) -> None:
        super().__init__(f"This took longer than the {deadline.seconds:g} s that it was given.")
        self.deadline = deadline


class Deadline:
    """What `fail_after` and `move_on_after` give. To be entered once.

    Args:
        seconds: From entering the block on.
        moves_on: Whether the block ends quietly when its time is up.
    """

    def __init__(self, seconds: float, *, moves_on: bool) -> None:
        self.seconds = seconds
        self.cancelled_caught = False
        """Whether a call was cut short and the block left because of it."""
        self._moves_on = moves_on
        self._at = 0.0
        self._outer: Deadline | None = None
        self._token: Token[Deadline | None] | None = None

    def __enter__(self) -> Deadline:
        if self._token is not None:
            raise RuntimeError("A deadline is entered once; make a new one.")
        self._at = time.monotonic() + self.seconds
        self._outer = _innermost.get()
        self._token = _innermost.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._token is not None
        _innermost.reset(self._token)
        self.cancelled_caught = isinstance(error, TooSlowError) and error.deadline is self
        return self.cancelled_caught and self._moves_on

    def remaining_s(self) -> float:
        """Seconds that are left; negative when it is over."""
        return self._at - time.monotonic()


def fail_after(seconds: float) -> Deadline:
    """A block that raises `TooSlowError` when a call in it is not done after so many seconds."""
    return Deadline(seconds, moves_on=False)


def move_on_after(seconds: float) -> Deadline:
    """A block that is left, quietly, when a call in it is not done after so many seconds."""
    return Deadline(seconds, moves_on=True)


def nearest() -> Deadline | None:
    """The deadline that comes first of those around the caller; of equals, the outermost."""
    first = candidate = _innermost.get()
    while candidate is not None:
        if first is None or candidate.remaining_s() <= first.remaining_s():
            first = candidate
        candidate = candidate._outer
    return first
