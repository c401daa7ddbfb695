"""`Forward`: one forward of a running machine, and what carries its connections."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Final

import trio

from microvm.errors import MicrovmError
from microvm.forwards.carry import carry, reset_on_close

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from trio.abc import HalfCloseableStream, Listener

    from microvm.forwards.addresses import Address

    Handle = Callable[[HalfCloseableStream], Awaitable[None]]
    Connect = Callable[[], Awaitable[HalfCloseableStream]]
    Open = Callable[[], AbstractAsyncContextManager[tuple[Address, Listener[HalfCloseableStream]]]]

log = logging.getLogger("microvm.forwards")

MAX_CONNECTIONS: Final = 1024
"""Of one forward at once; more wait to be accepted. A vsock device has room for 1023."""


def carrying_to(connect: Connect) -> Handle:
    """Serve a connection by carrying it to another, which `connect` opens.

    What a person sees of a place where nobody listens is a connection that is reset.
    """

    async def handle(stream: HalfCloseableStream) -> None:
        try:
            other = await connect()
        except (MicrovmError, OSError):
            reset_on_close(stream)
            raise
        await carry(stream, other)

    return handle


class Forward:
    """A forward that works; `Machine.forward`, `expose`, `socks5` and their like make them.

    It lasts until it is closed or the machine ends. An async context manager, or closed by
    `aclose`; both end its connections. For the trio thread of its machine.

    Args:
        target: Where it leads: an address, or what is there in a few words.
        handle: Serves one connection to its end, which then is closed.
    """

    def __init__(self, target: Address | str, handle: Handle) -> None:
        self._target = target
        self._handle = handle
        self._address: Address | None = None
        self._connections = 0
        self._places = trio.Semaphore(MAX_CONNECTIONS)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def __repr__(self) -> str:
        return f"<Forward {self._address} to {self._target}>"

    @property
    def address(self) -> Address:
        """Where to connect, its port chosen."""
        assert self._address is not None
        return self._address

    @property
    def target(self) -> Address | str:
        """Where it leads."""
        return self._target

    @property
    def connections(self) -> int:
        """How many it carries now."""
        return self._connections

    async def aclose(self) -> None:
        """Take no more connections and end those that there are. Again, or later, is fine."""
        self._scope.cancel()
        await self._ended.wait()

    async def __aenter__(self) -> Forward:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- for the machine ------------------------------------------------------------------

    async def serve(
        self, open_listener: Open, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen and carry until closed or cancelled; to be started in the machine's nursery.

        Args:
            open_listener: Listens within its block, and says where.
            task_status: Told when it listens.
        """
        with self._scope:
            try:
                async with open_listener() as (self._address, listener):
                    task_status.started()
                    await self._accept(listener)
            finally:
                self._ended.set()

    async def _accept(self, listener: Listener[HalfCloseableStream]) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await self._places.acquire()
                try:
                    stream = await listener.accept()
                except (trio.ClosedResourceError, MicrovmError) as error:
                    log.debug("%r accepts no more: %s", self, error)
                    return
                nursery.start_soon(self._serve_one, stream)

    async def _serve_one(self, stream: HalfCloseableStream) -> None:
        self._connections += 1
        try:
            async with stream:
                await self._handle(stream)
        except (MicrovmError, OSError) as error:
            log.info("%r: %s", self, error)
        except Exception:
            log.exception("%r: a connection was lost", self)
        finally:
            self._connections -= 1
            self._places.release()
