"""`Socks5Provisioner`: a guest whose SOCKS5 server is up when the guest is ready.

The server is in the agent and needs nothing of the image; `Machine.socks5` and `connect_through`
start it by themselves when they are first used. This has it started before, for those to whom the
first connection must be as quick as the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm.abc import GuestLink, Provisioner, ProvisionerNeeds

if TYPE_CHECKING:
    from microvm.abc import Guest, GuestChannels
    from microvm.config import MachineConfig
    from microvm.timeline import BootTimeline


class Socks5Provisioner(Provisioner):
    """Starts the guest's SOCKS5 server as part of its getting ready."""

    def needs(self, config: MachineConfig) -> ProvisionerNeeds:
        """The agent, whose server it is."""
        return ProvisionerNeeds(provisioners=("agent",))

    @asynccontextmanager
    async def attach(self, channels: GuestChannels) -> AsyncIterator[Socks5Link]:
        """Nothing is to be opened before the guest runs."""
        yield Socks5Link()


class Socks5Link(GuestLink):
    """Its half of a machine."""

    async def wait_ready(self, timeline: BootTimeline) -> None:
        """The agent's report is enough."""

    async def build_on(self, guest: Guest) -> None:
        """Start the server.

        Raises:
            GuestError: it did not start.
        """
        await guest.socks5_handler()
