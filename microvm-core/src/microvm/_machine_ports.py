"""What a machine carries between its host and its guest: streams, forwards, proxies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from microvm.errors import GuestGone

if TYPE_CHECKING:
    from pathlib import Path

    from trio.abc import HalfCloseableStream, Listener

    from microvm.abc import Guest, GuestChannels
    from microvm.forwards.forward import Forward
    from microvm.forwards.opening import ForwardOpener
    from microvm.outbound import OutboundPolicy


class PortVerbs(ABC):
    """The part of `Machine` that is about ports, its own and its guest's."""

    @abstractmethod
    async def wait_ready(self) -> Guest:
        """As `Machine.wait_ready`."""

    @abstractmethod
    async def _explained(self, error: GuestGone) -> GuestGone:
        """The same error with the machine's end in it, when the machine has ended."""

    @abstractmethod
    def _streams(self) -> GuestChannels:
        """The channel to guest ports; a `ConfigError` without one."""

    @abstractmethod
    def _forwards(self) -> ForwardOpener:
        """What opens forwards for this machine, while it lives."""

    async def connect(self, port: int) -> HalfCloseableStream:
        """Open a stream to a guest port; see `GuestChannels.connect`."""
        return await self._streams().connect(port)

    def listen(self, port: int) -> Listener[HalfCloseableStream]:
        """Take the guest's connections to a host port; see `GuestChannels.listen`."""
        return self._streams().listen(port)

    async def forward(
        self,
        *,
        guest_port: int | None = None,
        guest_host: str | None = None,
        guest_path: str | None = None,
        vsock_port: int | None = None,
        host: str | None = None,
        port: int | None = None,
        path: str | Path | None = None,
    ) -> Forward:
        """Listen on the host, and carry each connection into the guest.

        Works at once and until it is closed or the machine ends; a connection that comes before
        the guest is ready waits for it. One that leads nowhere is reset.

        Args:
            guest_port: A TCP port of the guest's.
            guest_host: A numeric address that the guest can reach; its loopback if not given.
            guest_path: In place of a port, an AF_UNIX socket of the guest's.
            vsock_port: In place of either, a vsock port that a program in the guest serves.
            host: A numeric address of this host's to listen at; 127.0.0.1 if not given.
            port: The TCP port there; one is chosen if not given, see `Forward.address`.
            path: In place of a port, where to make an AF_UNIX socket, mode 0600. Its directory
                must be there, and one in which no other user can replace it.

        Raises:
            ConfigError: it can't be listened at, or what was given is not one place on each side.
        """
        from microvm.forwards.addresses import guest_address, host_address

        begin = host_address(host, port, path, default_port=0)
        target = guest_address(guest_host, guest_port, guest_path, vsock_port)
        return await self._forwards().into_guest(begin, target)

    async def expose(
        self,
        *,
        port: int | None = None,
        host: str | None = None,
        path: str | Path | None = None,
        guest_port: int | None = None,
        guest_host: str | None = None,
        guest_path: str | None = None,
        vsock_port: int | None = None,
    ) -> Forward:
        """Offer a service of the host's, and nothing else of it, to the guest.

        Args:
            port: The service's TCP port.
            host: Its numeric address; 127.0.0.1 if not given.
            path: In place of a port, its AF_UNIX socket.
            guest_port: The TCP port in the guest to offer it at; 0 has one chosen.
            guest_host: A numeric address of the guest's to listen at; its loopback if not given.
            guest_path: In place of a port, where to make an AF_UNIX socket in the guest.
            vsock_port: In place of either, the port of CID 2 that the guest's programs dial.

        Raises:
            ConfigError: `vsock_port` is taken, or what was given is not one place on each side.
            GuestError: the guest can't listen there.
        """
        from microvm.forwards.addresses import guest_address, host_address

        target = host_address(host, port, path)
        begin = guest_address(guest_host, guest_port, guest_path, vsock_port)
        return await self._forwards().out_of_guest(begin, target)

    async def socks5(
        self,
        *,
        host: str | None = None,
        port: int | None = None,
        path: str | Path | None = None,
        guest_port: int | None = None,
        login: tuple[str, str] | None = None,
    ) -> Forward:
        """Offer on the host a SOCKS5 proxy whose other end is the guest.

        Its clients reach what the guest reaches: through its network, its VPN, its name servers.
        Returns when the guest is ready for them. Works until it is closed or the machine ends.
        Every program of this host's can use a port; an AF_UNIX socket only this user's.

        Args:
            host: A numeric address of this host's to listen at; 127.0.0.1 if not given.
            port: The port there; one is chosen if not given, see `Forward.address`.
            path: In place of a port, where to make an AF_UNIX socket, mode 0600.
            guest_port: A SOCKS5 server of your own on the guest's loopback; the agent's if not
                given.
            login: A name and a password that clients must give (RFC 1929), so that other users
                of this host can't use the port.

        Raises:
            ConfigError: it can't be listened at, or the guest's agent can't do it.
            GuestError: the guest's server did not start.
            BootError: the guest did not get ready.
        """
        from microvm.forwards.addresses import TcpAddress, host_address

        begin = host_address(host, port, path, default_port=0)
        guest = await self.wait_ready()
        server = None if guest_port is None else TcpAddress(port=guest_port)
        handle = await guest.socks5_handler(server, login)
        return await self._forwards().on_host(begin, "the guest's SOCKS5 server", handle)

    async def connect_through(self, host: str, port: int) -> HalfCloseableStream:
        """Open a stream to whatever the guest can reach; see `Guest.connect_through`."""
        guest = await self.wait_ready()
        try:
            return await guest.connect_through(host, port)
        except GuestGone as error:
            raise await self._explained(error) from error

    async def outbound_proxy(
        self, policy: OutboundPolicy | None = None, *, guest_port: int = 1081
    ) -> Forward:
        """Offer the guest a SOCKS5 proxy that leads out by the host's own network.

        For a guest without a network device. It is on the guest's loopback; TCP, and UDP for
        programs that speak SOCKS5's. Works until it is closed or the machine ends.

        Args:
            policy: What may be reached; the public Internet if not given.
            guest_port: Where it listens in the guest; 0 has one chosen.

        Raises:
            GuestError: the guest can't listen there.
            ConfigError: the guest's agent can't do it.
        """
        from microvm.forwards.addresses import TcpAddress
        from microvm.outbound import OutboundPolicy

        guest = await self.wait_ready()
        handle = guest.outbound_handler(policy if policy is not None else OutboundPolicy())
        begin = TcpAddress(port=guest_port)
        return await self._forwards().in_guest(begin, "what its host reaches", handle)
