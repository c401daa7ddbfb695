"""Opening the forwards of one machine, in either direction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm._groups import only_error
from microvm.forwards import sockets
from microvm.forwards.addresses import Address, TcpAddress, UnixAddress, VsockAddress
from microvm.forwards.forward import Forward, carrying_to
from microvm.forwards.host_ports import listen_unguessed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio
    from trio.abc import HalfCloseableStream, Listener

    from microvm.abc import Guest, GuestChannels
    from microvm.forwards.forward import Handle, Open


class ForwardOpener:
    """Opens forwards of a machine that runs.

    Args:
        nursery: The machine's; a forward lives in it.
        channels: To the guest.
        wait_ready: Waits for the guest, for what its agent must do.
        wait_settled: Waits until the guest is ready or is known not to be, and does not fail.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        channels: GuestChannels,
        wait_ready: Callable[[], Awaitable[Guest]],
        wait_settled: Callable[[], Awaitable[object]],
    ) -> None:
        self._nursery = nursery
        self._channels = channels
        self._wait_ready = wait_ready
        self._wait_settled = wait_settled

    async def into_guest(self, begin: TcpAddress | UnixAddress, target: Address) -> Forward:
        """Listen on the host; each connection leads to `target` in the guest.

        Raises:
            ConfigError: `begin` can't be listened at.
        """

        async def connect() -> HalfCloseableStream:
            if isinstance(target, VsockAddress):
                await self._wait_settled()
                return await self._channels.connect(target.port)
            guest = await self._wait_ready()
            return await guest.connect_to(target)

        return await self.on_host(begin, target, carrying_to(connect))

    async def on_host(
        self, begin: TcpAddress | UnixAddress, target: Address | str, handle: Handle
    ) -> Forward:
        """Listen on the host; each connection is served by `handle`.

        Raises:
            ConfigError: `begin` can't be listened at.
        """

        @asynccontextmanager
        async def listen() -> AsyncIterator[tuple[Address, Listener[HalfCloseableStream]]]:
            listener = await sockets.open_listener(begin)
            try:
                yield listener.address, listener
            finally:
                listener.close()

        return await self._serve(Forward(target, handle), listen)

    async def out_of_guest(self, begin: Address, target: TcpAddress | UnixAddress) -> Forward:
        """Offer `target`, a service of the host's, at `begin` in the guest.

        Raises:
            ConfigError: `begin` is a vsock port that is taken.
            GuestError: the guest's agent can't listen there.
        """

        async def connect() -> HalfCloseableStream:
            return await sockets.connect(target)

        return await self.in_guest(begin, target, carrying_to(connect))

    async def in_guest(self, begin: Address, target: Address | str, handle: Handle) -> Forward:
        """Listen in the guest; each connection is served on the host by `handle`.

        Raises:
            ConfigError: `begin` is a vsock port that is taken.
            GuestError: the guest's agent can't listen there.
        """

        @asynccontextmanager
        async def listen() -> AsyncIterator[tuple[Address, Listener[HalfCloseableStream]]]:
            if isinstance(begin, VsockAddress):
                async with self._channels.listen(begin.port) as listener:
                    yield begin, listener
                return
            guest = await self._wait_ready()
            port, listener = listen_unguessed(self._channels)
            async with listener, guest.listen_at(begin, port) as address:
                yield address, listener

        return await self._serve(Forward(target, handle), listen)

    async def _serve(self, forward: Forward, listen: Open) -> Forward:
        try:
            await self._nursery.start(forward.serve, listen)
        except BaseExceptionGroup as group:
            raise only_error(group) from None
        return forward
