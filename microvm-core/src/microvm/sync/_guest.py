"""`Guest` without async."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from microvm.sync._channels import socket_from
from microvm.sync._guest_verbs import GuestVerbs

if TYPE_CHECKING:
    import trio

    from microvm.abc import Guest as AsyncGuest
    from microvm.forwards import TcpAddress, UnixAddress
    from microvm.sync._loop import BackgroundLoop


class Guest(GuestVerbs):
    """What `Machine.wait_ready` returns: the guest; see `microvm.abc.Guest`."""

    def __init__(self, loop: BackgroundLoop, nursery: trio.Nursery, guest: AsyncGuest) -> None:
        self._loop = loop
        self._of_machine = nursery
        self._guest = guest

    def _live(self) -> tuple[BackgroundLoop, AsyncGuest]:
        return self._loop, self._guest

    def _nursery(self) -> trio.Nursery:
        return self._of_machine

    def ping(self) -> float:
        """Round trip to the agent in milliseconds, as the background loop sees it."""
        return self._loop.call(self._guest.ping)

    def status(self) -> Mapping[str, Any]:
        """What the agent says of its guest: version, kernel, uptime, memory, commands."""
        return self._loop.call(self._guest.status)

    def shutdown(self) -> None:
        """Ask the guest to end itself. Returns when the agent has agreed; see `Machine.wait`."""
        self._loop.call(self._guest.shutdown)

    def connect_to(self, address: TcpAddress | UnixAddress) -> socket.socket:
        """A blocking socket to a TCP port or AF_UNIX socket as a program in the guest has it."""
        return socket_from(self._loop, self._of_machine, partial(self._guest.connect_to, address))

    @contextmanager
    def listen_at(
        self, address: TcpAddress | UnixAddress, host_port: int
    ) -> Iterator[TcpAddress | UnixAddress]:
        """Have the guest listen within the block, for a vsock port of the host's."""
        with self._loop.hold(partial(self._guest.listen_at, address, host_port)) as bound:
            yield bound
