"""`OpenVpnTunnel` without async, for machines of `microvm.sync`.

    with Machine(vpn_machine()) as machine:
        with OpenVpnTunnel(machine, "office.ovpn", Credentials("me", "secret")) as vpn:
            vpn.wait_connected()
            with machine.socks5() as proxy:
                ...

Names and arguments are those of `microvm_guest.openvpn`, where all else comes from; what holds for
calls of `microvm.sync` (deadlines, Ctrl-C, threads, forks) holds for these.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from microvm.sync import Portal

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    import trio

    from microvm.sync import Machine
    from microvm_guest.openvpn.config import OpenVpnConfig
    from microvm_guest.openvpn.credentials import Challenge, Credentials
    from microvm_guest.openvpn.status import EventFeed as AsyncEventFeed
    from microvm_guest.openvpn.status import VpnEvent, VpnStatus
    from microvm_guest.openvpn.tunnel import OpenVpnTunnel as AsyncOpenVpnTunnel

__all__ = ["EventFeed", "OpenVpnTunnel"]


class EventFeed(Iterator["VpnEvent"]):
    """What `OpenVpnTunnel.events` gives: an iterator that waits for what happens."""

    def __init__(self, portal: Portal, feed: AsyncEventFeed) -> None:
        self._feed = feed
        self._events = portal.iterate(feed)

    @property
    def lost(self) -> int:
        """How many events this reader was too slow for."""
        return self._feed.lost

    def __next__(self) -> VpnEvent:
        return next(self._events)


class OpenVpnTunnel:
    """A VPN of a machine's; see `microvm_guest.openvpn.OpenVpnTunnel`.

    Args:
        machine: One that is started, with the provisioner `openvpn`.
        config: What to start at once when the block is entered; `start` does it later.
        credentials: What the user knows. ``answer`` may be a plain function: it is called in a
            thread, for one question at a time, and may wait for a person.
        dns: Name servers to be asked, through the tunnel, in place of those that the VPN names.
        outbound: Whether the VPN's server is reached by the host's network in place of the guest's
            own; if not said, where the guest has none.

    Raises (on entry, as `start`): as the async one does.
    """

    def __init__(
        self,
        machine: Machine,
        config: OpenVpnConfig | str | os.PathLike[str] | None = None,
        credentials: Credentials | None = None,
        *,
        dns: Sequence[str] = (),
        outbound: bool | None = None,
    ) -> None:
        self._portal = Portal(machine)
        self._asking: trio.CapacityLimiter | None = None
        self._held: AbstractContextManager[object] | None = None

        def make() -> AsyncOpenVpnTunnel:
            from microvm_guest.openvpn.tunnel import OpenVpnTunnel as AsyncOpenVpnTunnel

            known = self._answering(credentials)
            return AsyncOpenVpnTunnel(
                self._portal.machine, config, known, dns=dns, outbound=outbound
            )

        self._tunnel = self._portal.read(make)

    def __enter__(self) -> OpenVpnTunnel:
        if self._held is not None:
            raise RuntimeError("An OpenVpnTunnel is entered once; make a new one.")
        self._held = self._portal.hold(lambda: self._tunnel)
        self._held.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._held is not None
        self._held.__exit__(kind, error, traceback)

    def start(
        self, config: OpenVpnConfig | str | os.PathLike[str], credentials: Credentials | None = None
    ) -> None:
        """Start the daemon; returns when it runs, and long before it is connected."""
        self._portal.call(self._tunnel.start, config, self._answering(credentials))

    def stop(self) -> None:
        """End the daemon, politely for three seconds. Twice is fine."""
        self._portal.call(self._tunnel.stop)

    @property
    def status(self) -> VpnStatus:
        """How the tunnel is now."""
        return self._tunnel.status

    def events(self) -> EventFeed:
        """What happens from now on, to be iterated over; the first is how it is now.

        Ends with this object's block, so read it in another thread, or leave the loop yourself.
        """
        return EventFeed(self._portal, self._portal.read(self._tunnel.events))

    def wait_connected(self) -> VpnStatus:
        """Wait until the tunnel is up.

        Raises:
            VpnFailed: it failed, or was stopped.
        """
        return self._portal.call(self._tunnel.wait_connected)

    def wait_ended(self) -> VpnStatus:
        """Wait until it has failed or was stopped."""
        return self._portal.call(self._tunnel.wait_ended)

    def _answering(self, credentials: Credentials | None) -> Credentials | None:
        """The same, with a plain `answer` made one for the loop."""
        if credentials is None or credentials.answer is None:
            return credentials
        given = credentials.answer
        if inspect.iscoroutinefunction(given):
            return credentials

        async def answer(challenge: Challenge) -> str:
            import trio

            if self._asking is None:
                # One: a server that asks without end has one thread wait, and not all there are.
                self._asking = trio.CapacityLimiter(1)
            said = await trio.to_thread.run_sync(
                given, challenge, abandon_on_cancel=True, limiter=self._asking
            )
            return said if isinstance(said, str) else await said

        return attrs.evolve(credentials, answer=answer)
