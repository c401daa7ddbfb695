"""What other threads have the loop do: one thing to its end, or holding something open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar

from microvm._groups import only_error
from microvm.errors import MicrovmError
from microvm.sync._deadlines import TooSlowError, nearest
from microvm.sync._flag import Flag

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    import trio

    from microvm.sync._deadlines import Deadline
    from microvm.sync._loop import BackgroundLoop

T = TypeVar("T")


class Call(Generic[T]):
    """One task on the loop that another thread waits for.

    Args:
        work: What it does.
        bounded: Whether the deadlines around the maker count.
    """

    value: T

    def __init__(self, work: Callable[[], Awaitable[T]], *, bounded: bool = True) -> None:
        self._work = work
        self._deadline: Deadline | None = nearest() if bounded else None
        self._scope: trio.CancelScope | None = None
        self._cancelled = False
        self.done = Flag()
        self.begun = False
        """Whether its task was started; kept on the loop's thread."""
        self.completed = False
        self.error: BaseException | None = None
        self.too_slow = False

    async def run(self) -> None:
        """The task. Only cancellation by the loop's end comes out of it."""
        import trio

        self._scope = trio.CancelScope()
        if self._cancelled:
            self._scope.cancel()
        if self._deadline is not None:
            self._scope.deadline = trio.current_time() + self._deadline.remaining_s()
        try:
            with self._scope:
                await trio.lowlevel.checkpoint_if_cancelled()
                await self.body()
            self.too_slow = self._scope.cancelled_caught and not self._cancelled
        except BaseException as error:
            if _holds_cancelled(error):
                raise
            self.error = error
        finally:
            self.done.set()

    async def body(self) -> None:
        """What is done within the scope."""
        self.value = await self._work()
        self.completed = True

    def cancel(self) -> None:
        """On the loop's thread: let it end now."""
        self._cancelled = True
        if not self.begun:
            self.drop()  # the caller was interrupted before it could say what it wants
        elif self._scope is not None:
            self._scope.cancel()

    def drop(self) -> None:
        """It will not be done."""
        self.done.set()

    def stay(self) -> None:
        """On the loop's thread: its deadline no longer counts."""
        assert self._scope is not None
        self._scope.deadline = math.inf

    def result(self) -> T:
        """What it came to; for the thread that waited."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # it refers to this frame, which refers to it
        if self.completed:
            return self.value
        if self.too_slow and self._deadline is not None:
            raise TooSlowError(self._deadline)
        raise RuntimeError("The loop that machines live on has ended, as when the program exits.")


class _HeldCall(Call[T]):
    """Holds an async context manager open until it is told to leave."""

    def __init__(self, enter: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        super().__init__(self._never)
        self._enter = enter
        self._leave: trio.Event | None = None
        self._leave_by: BaseException | None = None
        self.entered = Flag()

    async def _never(self) -> T:
        raise AssertionError

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self.entered.set()

    def drop(self) -> None:
        super().drop()
        self.entered.set()

    async def body(self) -> None:
        import trio

        self._leave = trio.Event()
        async with self._enter() as self.value:
            self.stay()
            self.completed = True
            self.entered.set()
            await self._leave.wait()
            if self._leave_by is not None:
                raise self._leave_by

    def leave(self, error: BaseException | None) -> None:
        """On the loop's thread: leave the block, by an error of the caller's if given."""
        assert self._leave is not None
        self._leave_by = error
        self._leave.set()


class _LeftByAnError(Exception):
    """Stands for the error of a caller's block."""


class Held(Generic[T]):
    """A context manager for one thread at a time, whose insides are on the loop."""

    def __init__(
        self, loop: BackgroundLoop, enter: Callable[[], AbstractAsyncContextManager[T]]
    ) -> None:
        self._loop = loop
        self._call = _HeldCall(enter)

    def __enter__(self) -> T:
        loop, call = self._loop, self._call
        loop.check_usable()
        try:
            loop.start(call)
            loop.wait(call.entered)
            return call.result()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Leave at once, whatever has been reached: the caller was interrupted."""
        self._loop.tell(self._call.cancel)
        self._loop.wait(self._call.done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop.foreign:
            return  # it is its parent's
        call = self._call
        # The loop's side explains an error of ours (a guest that is gone: how it ended). Of any
        # other it only hears that there was one, so that half a file is not taken for a whole.
        told = error if error is None or isinstance(error, MicrovmError) else _LeftByAnError()
        self._loop.tell(lambda: call.leave(told))
        self._loop.wait(call.done)
        left_by, call.error = call.error, None
        if left_by is not None and only_error(left_by) is not told:
            raise left_by


def _holds_cancelled(error: BaseException) -> bool:
    import trio

    if isinstance(error, BaseExceptionGroup):
        return any(map(_holds_cancelled, error.exceptions))
    return isinstance(error, trio.Cancelled)
