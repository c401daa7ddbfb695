"""`OpenVpnTunnel`: the tunnel as its user holds it: start, stop, status, events.

What the daemon in the guest does between a start and its end is `daemon_run`'s.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakSet

import attrs
import trio

from microvm.errors import ConfigError
from microvm_guest._tasks import serving
from microvm_guest.openvpn.config import OpenVpnConfig, read_config
from microvm_guest.openvpn.credentials import Credentials
from microvm_guest.openvpn.daemon_run import DaemonRun
from microvm_guest.openvpn.errors import VpnFailed
from microvm_guest.openvpn.states import ENDED, VpnReason, VpnState
from microvm_guest.openvpn.status import EventFeed, LogLine, StateChanged, VpnStatus
from microvm_guest.provisioners.openvpn import OpenVpnLink, numeric

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from microvm import Machine

log = logging.getLogger("microvm.vpn")


class OpenVpnTunnel:
    """A VPN of a machine's, as an async context manager; with it ends the daemon.

    However the block is left, by cancellation too, the server is told: that takes a second or two,
    and three at most. Only a machine that is paused or has ended, or that is cancelled with it,
    says no goodbye.

    While it is up, and only then, `Machine.socks5` and `Machine.connect_through` lead through it.

    Args:
        machine: One with the provisioner `openvpn`; see `vpn_machine`.
        config: What to start at once when the block is entered; `start` does it later.
        credentials: What the user knows.
        dns: Name servers to be asked, through the tunnel, in place of those that the VPN names.
        outbound: Whether the VPN's server is reached by the host's network in place of the guest's
            own; if not said, where the guest has none.

    Raises (on entry, as `start`):
        VpnConfigError: the configuration can't be used.
        ConfigError: the machine has no provisioner `openvpn`, or a tunnel already.
        GuestError: the guest has no OpenVPN.
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
        self._machine = machine
        self._config = config
        self._credentials = credentials
        self._dns = tuple(dns)
        if len(numeric(self._dns)) != len(self._dns):
            raise ConfigError(
                "A VPN's name servers are given by address.", remedy="dns=('9.9.9.9',)"
            )
        self._outbound = outbound if outbound is not None else not machine.config.nets
        self._scope: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._run: DaemonRun | None = None
        self._status = VpnStatus()
        self._error: VpnFailed | None = None
        self._changed = trio.Event()
        self._feeds: WeakSet[EventFeed] = WeakSet()

    async def __aenter__(self) -> OpenVpnTunnel:
        self._scope = serving()
        self._nursery = await self._scope.__aenter__()
        try:
            if self._config is not None:
                await self.start(self._config, self._credentials)
        except BaseException as error:
            self._nursery = None
            await self._scope.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._scope is not None
        self._nursery = None  # nothing is started any more
        try:
            if self._machine.state == "running":
                with trio.CancelScope(shield=True):  # it is bounded by itself
                    await self.stop()
        finally:
            if self._run is not None:
                self._run.abandon()
            await self._scope.__aexit__(None, None, None)
            for feed in list(self._feeds):
                feed.end()

    # --- for the user ---------------------------------------------------------------------

    async def start(
        self, config: OpenVpnConfig | str | os.PathLike[str], credentials: Credentials | None = None
    ) -> None:
        """Start the daemon; returns when it runs, and long before it is connected.

        Raises:
            VpnConfigError: the configuration can't be used.
            ConfigError: there is no provisioner `openvpn`, or a tunnel is running or starting.
            GuestError: the guest has no OpenVPN.
            VpnFailed: it was stopped while it started.
        """
        if self._nursery is None:
            raise RuntimeError("The tunnel is not entered: use `async with OpenVpnTunnel(...)`.")
        if self._run is not None:
            raise ConfigError("The tunnel is running.", remedy="Stop it first.")
        parsed = config if isinstance(config, OpenVpnConfig) else read_config(Path(config))
        known = credentials or parsed.credentials or Credentials()
        link = self._machine.link(OpenVpnLink)
        run = DaemonRun(self, self._machine, link, parsed, known, self._dns, self._outbound)
        run.claim()  # before anything is waited for: of two at once the second is refused
        self._run = run
        try:
            await self._nursery.start(run.serve)
        except BaseExceptionGroup as group:
            from microvm._groups import only_error

            raise only_error(group) from None
        run.end_by_itself()

    async def stop(self) -> None:
        """End the daemon, politely for three seconds. Twice is fine."""
        if self._run is not None:
            await self._run.stop()

    @property
    def status(self) -> VpnStatus:
        """How the tunnel is now."""
        return self._status

    def events(self) -> EventFeed:
        """What happens from now on, to be iterated over; the first is how it is now.

        Ends with this object's block. A reader that is too slow loses the oldest, see `lost`.
        """
        feed = EventFeed()
        feed.put(StateChanged(at=time.time(), status=self._status))
        self._feeds.add(feed)
        return feed

    async def wait_connected(self) -> VpnStatus:
        """Wait until the tunnel is up.

        Raises:
            VpnFailed: it failed, or was stopped.
        """
        while True:
            status, changed = self._status, self._changed
            if status.state is VpnState.CONNECTED:
                return status
            if status.state in ENDED:
                raise self._error or VpnFailed(
                    "The VPN is not started.", reason=VpnReason.DAEMON_DIED, remedy="Start it."
                )
            await changed.wait()

    async def wait_ended(self) -> VpnStatus:
        """Wait until it has failed or was stopped."""
        while self._status.state not in ENDED:
            await self._changed.wait()
        return self._status

    # --- for the run ----------------------------------------------------------------------

    def publish(self, status: VpnStatus, error: VpnFailed | None) -> None:
        """Show this from now on, and tell those who watch."""
        self._status, self._error = status, error
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        for feed in list(self._feeds):
            feed.put(StateChanged(at=time.time(), status=status))
        log.info("%s%s", status.state.value, f": {status.detail}" if status.detail else "")

    def show_bytes(self, status: VpnStatus) -> None:
        """Byte counts are no event."""
        self._status = attrs.evolve(
            self._status, received_bytes=status.received_bytes, sent_bytes=status.sent_bytes
        )

    def publish_log(self, flags: str, text: str) -> None:
        """OpenVPN has said something."""
        for feed in list(self._feeds):
            feed.put(LogLine(at=time.time(), flags=flags, text=text))
        log.debug("%s", text)

    def run_is_over(self) -> None:
        """It may be started again."""
        self._run = None
