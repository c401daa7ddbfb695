"""`Portal`: the way to the loop for objects that are none of core's.

What a plugin gives its users beside `Machine` is async, and lives on the machine's loop: it is made
there, and each of its methods is called there. A portal has that done for a thread, with all that
holds for a machine's own calls: deadlines, Ctrl-C, errors as they are, refusal after a fork.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple

from microvm.sync._channels import socket_from

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from trio.abc import HalfCloseableStream

    from microvm._machine import Machine as AsyncMachine
    from microvm.sync._loop import BackgroundLoop
    from microvm.sync._machine import Machine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Portal:
    """Has things done on the loop that a machine lives on; from any thread, several at once.

    Args:
        machine: One that is started.

    Raises:
        RuntimeError: it is not.

    `call` and its kin raise what the function raises, `TooSlowError` where a deadline around the
    caller comes first, and `RuntimeError` on the loop's own thread and in a forked child.
    """

    machine: AsyncMachine
    """The machine as the loop has it. To be handed to what runs there; not to be used here."""

    def __init__(self, machine: Machine) -> None:
        self._loop, self.machine = machine._live()
        self._nursery = machine._nursery()

    def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await ``function(*args)`` there. It is cancelled when the caller is interrupted."""
        return self._loop.call(partial(function, *args))

    def read(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function there that is not async: to make an object, or to look at one."""

        async def work() -> T:
            return function(*args)

        return self._loop.call(work)

    def hold(
        self,
        function: Callable[[*Ts], AbstractAsyncContextManager[T]],
        *args: *Ts,
    ) -> AbstractContextManager[T]:
        """The async context manager that ``function(*args)`` gives, as a plain one.

        It is entered and left there, in one task of its own, as nurseries want it. An error of the
        block's leaves it by an error too, not always by the same.
        """
        return self._loop.hold(partial(function, *args))

    def iterate(self, items: AsyncIterator[T]) -> LoopIterator[T]:
        """Its items, each waited for in its turn; for one thread.

        A wait that is cut short by a deadline or Ctrl-C loses no item, if the iterator's own wait
        can be cancelled, as that of a memory channel. That of an async generator can't: it ends.
        """
        return LoopIterator(self._loop, items)

    def open_socket(
        self, function: Callable[[*Ts], Awaitable[HalfCloseableStream]], *args: *Ts
    ) -> socket.socket:
        """The stream that ``await function(*args)`` gives, as a blocking socket."""
        return socket_from(self._loop, self._nursery, partial(function, *args))


class LoopIterator(Iterator[T], Generic[T]):
    """What `Portal.iterate` gives."""

    def __init__(self, loop: BackgroundLoop, items: AsyncIterator[T]) -> None:
        self._loop = loop
        self._items = items
        self._kept: deque[T] = deque()

    def __next__(self) -> T:
        if self._kept:  # it came while nobody was there any more to take it
            return self._kept.popleft()
        try:
            return self._loop.call(self._items.__anext__, undo=self._kept.append)
        except StopAsyncIteration:
            raise StopIteration from None
