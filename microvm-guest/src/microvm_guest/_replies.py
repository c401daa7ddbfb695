"""One answer for one waiter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from microvm.errors import MicrovmError

T = TypeVar("T")


def again(error: MicrovmError) -> MicrovmError:
    """The same error for another waiter: one exception raised in two tasks mixes tracebacks."""
    copy = type(error)(error.message, remedy=error.remedy, console=error.console)
    copy.__cause__ = error.__cause__
    return copy


class Reply(Generic[T]):
    """A value or an error that somebody waits for. What comes second is dropped."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._value: T | None = None
        self._error: MicrovmError | None = None

    @property
    def known(self) -> bool:
        """Whether `wait` would return at once."""
        return self._event.is_set()

    def set(self, value: T) -> None:
        """Answer."""
        if not self.known:
            self._value = value
            self._event.set()

    def fail(self, error: MicrovmError) -> None:
        """Answer that there will be no answer."""
        if not self.known:
            self._error = error
            self._event.set()

    async def wait(self) -> T:
        """The value, or a copy of the error raised."""
        await self._event.wait()
        if self._error is not None:
            raise again(self._error)
        return self._value  # type: ignore[return-value]  # set() gave it
