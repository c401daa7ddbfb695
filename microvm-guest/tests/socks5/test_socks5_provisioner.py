"""`Socks5Provisioner`: what it needs is said before the boot, and its server is up after it."""

import pytest

from microvm import MachineConfig
from microvm.abc import ProvisionerNeeds
from microvm.errors import GuestError
from microvm.plugins import ProvisionerFactory
from microvm.testing.channels import MemoryChannels
from microvm.timeline import BootTimeline
from microvm_guest.provisioners.socks5 import Socks5Provisioner
from microvm_guest.socks5 import plugin


class OneServer:
    """A guest, as far as this provisioner uses it."""

    def __init__(self, error=None):
        self.started = 0
        self.error = error

    async def socks5_handler(self, server=None):
        if self.error:
            raise self.error
        self.started += 1


async def test_the_server_is_started_when_the_guest_can_run_it():
    guest = OneServer()
    async with Socks5Provisioner().attach(MemoryChannels()) as link:
        assert await link.wait_ready(BootTimeline()) is None
        assert guest.started == 0
        await link.build_on(guest)
        assert guest.started == 1


async def test_a_server_that_does_not_start_is_the_machines_error():
    async with Socks5Provisioner().attach(MemoryChannels()) as link:
        with pytest.raises(GuestError):
            await link.build_on(OneServer(GuestError("no")))


def test_it_needs_the_agent_whose_server_it_is():
    assert Socks5Provisioner().needs(MachineConfig()) == ProvisionerNeeds(provisioners=("agent",))


def test_the_plugin_offers_it():
    factory = plugin.microvm_register_provisioner()
    assert isinstance(factory, ProvisionerFactory)
    assert factory.name == "socks5"
    assert isinstance(factory.create(), Socks5Provisioner)
