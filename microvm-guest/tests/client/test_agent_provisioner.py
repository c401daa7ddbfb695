"""`AgentProvisioner`: from the agent's call to a `Guest`."""

import struct

import pytest
import trio
import trio.testing

from microvm.config import DriveConfig, MachineConfig, NetConfig
from microvm.errors import ConfigError, GuestGone, GuestProtocolError, GuestRefused
from microvm.host_clocks import ClockJump
from microvm.plugins import ProvisionerFactory
from microvm.testing.channels import MemoryChannels
from microvm.timeline import BootTimeline
from microvm_guest import plugin
from microvm_guest.ports import HOST_PORT
from microvm_guest.protocol.frames import FrameType, Notice
from microvm_guest.provisioners.agent import AgentProvisioner
from microvm_guest.testing import FakeAgent, FakeCommand

COMMANDS = {"true": FakeCommand(), "sleep": FakeCommand(hang=True)}


async def boot(channels, commands=COMMANDS):
    agent = await FakeAgent.dial(channels.guest)
    await agent.serve(commands)


async def test_the_call_that_the_agent_makes_is_the_connection_it_is_used_over():
    channels = MemoryChannels()
    timeline = BootTimeline()
    async with (
        AgentProvisioner().attach(channels) as link,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(boot, channels)
        guest = await link.wait_ready(timeline)
        assert guest is not None
        assert (await guest.run(["true"])).success
        assert list(timeline.phases) == ["kernel", "agent"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("roots", "words"),
    [((), []), ((False, False), []), ((True,), ["vda"]), ((False, False, True), ["vdc"])],
)
def test_the_agent_is_told_by_a_word_of_its_own_which_disk_to_enter(roots, words):
    drives = [DriveConfig(path="disk", root=root) for root in roots]
    told = AgentProvisioner().kernel_cmdline(MachineConfig(drives=drives))
    assert told == [f"microvm.root=/dev/{name}" for name in words]


async def test_the_port_is_open_before_the_guest_runs_and_free_once_it_has_called():
    channels = MemoryChannels()
    async with AgentProvisioner().attach(channels) as link, trio.open_nursery() as nursery:
        with pytest.raises(ConfigError):
            channels.listen(HOST_PORT)
        nursery.start_soon(boot, channels)
        await link.wait_ready(BootTimeline())
        with pytest.raises(GuestRefused):
            await FakeAgent.dial(channels.guest)
        nursery.cancel_scope.cancel()


async def test_the_port_is_free_after_a_guest_that_never_called():
    channels = MemoryChannels()
    async with AgentProvisioner().attach(channels) as link:
        with trio.move_on_after(0.01) as scope:
            await link.wait_ready(BootTimeline())
        assert scope.cancelled_caught
    channels.listen(HOST_PORT)


async def test_a_guest_that_talks_garbage_is_a_protocol_error():
    channels = MemoryChannels()
    async with AgentProvisioner().attach(channels) as link:
        agent = await FakeAgent.dial(channels.guest)
        await agent.stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(GuestProtocolError):
            await link.wait_ready(BootTimeline())


async def test_a_guest_that_hangs_up_at_once_is_gone():
    channels = MemoryChannels()
    async with AgentProvisioner().attach(channels) as link:
        agent = await FakeAgent.dial(channels.guest)
        await agent.stream.aclose()
        with pytest.raises(GuestGone):
            await link.wait_ready(BootTimeline())


async def test_leaving_the_block_ends_who_still_waits_on_the_guest():
    channels = MemoryChannels()
    raised = []
    async with trio.open_nursery() as nursery, AgentProvisioner().attach(channels) as link:
        nursery.start_soon(boot, channels)
        # the call is made before anybody waits for it: nothing is lost
        await trio.testing.wait_all_tasks_blocked()
        guest = await link.wait_ready(BootTimeline())

        async def run():
            with pytest.raises(GuestGone):
                await guest.run(["sleep"])
            raised.append(True)

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
    assert raised == [True]


async def test_the_bodys_error_comes_out_as_it_is():
    with pytest.raises(KeyError):
        async with AgentProvisioner().attach(MemoryChannels()):
            raise KeyError


def test_the_plugin_offers_it_by_its_name():
    factory = plugin.microvm_register_provisioner()
    assert isinstance(factory, ProvisionerFactory)
    assert factory.name == "agent"
    assert isinstance(factory.create(), AgentProvisioner)


def test_the_plugin_module_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, microvm_guest.plugin; print('trio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_agent_is_told_which_networks_to_ask_for_an_address() -> None:
    backends = ("passt", "null", "tap", "loopback")
    nets = tuple(NetConfig(backend=name) for name in backends)
    assert AgentProvisioner().kernel_cmdline(MachineConfig(nets=nets)) == ["microvm.dhcp=eth0,eth2"]
    silent = MachineConfig(nets=(NetConfig(backend="null"),))
    assert AgentProvisioner().kernel_cmdline(silent) == []


@pytest.mark.parametrize(
    ("set_by_s", "told"),
    [
        (0.0, {Notice.RESUMED}),
        (3600.0, {Notice.RESUMED}),
        (-0.5, {Notice.RESUMED}),
        (-1.5, {Notice.CLOCK_SET_BACK, Notice.RESUMED}),
    ],
)
async def test_a_guest_is_told_that_its_hosts_clock_was_set_back_by_more_than_a_second(
    set_by_s, told
):
    channels = MemoryChannels()
    seen = set()

    async def answer():
        agent = await FakeAgent.dial(channels.guest)
        await agent.greet()
        while (frame := await agent.receive()) is not None:
            seen.add(Notice(struct.unpack_from("<I", frame.payload)[0]))
            await agent.send(FrameType.NOTICE, payload=frame.payload[:4])

    async with AgentProvisioner().attach(channels) as link, trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await link.wait_ready(BootTimeline())
        await link.clock_changed(ClockJump(slept_s=0.0, set_by_s=set_by_s))
        assert seen == told
        nursery.cancel_scope.cancel()
