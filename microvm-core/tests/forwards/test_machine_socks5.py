"""`Machine.socks5`, `connect_through` and `outbound_proxy`, with a guest that scripts its part."""

import pytest
import trio
import trio.testing

from microvm import BootSource, ConfigError, GuestGone, Machine, MachineConfig, OutboundPolicy
from microvm.abc import Guest
from microvm.errors import GuestError
from microvm.forwards import TcpAddress, UnixAddress
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedBackend, ScriptedProvisioner
from microvm.testing.plugins import plugin_manager


async def _never(*_args, **_options):
    raise AssertionError("not asked for")


class PlainGuest(Guest):
    """An agent that knows nothing of SOCKS5."""

    run = spawn = ping = status = shutdown = _never


class ProxyGuest(PlainGuest):
    """Serves each client with one word, and notes what it was asked for."""

    def __init__(self, channels):
        self.channels = channels
        self.asked = []
        self.error = None

    async def socks5_handler(self, server=None, login=None):
        if self.error:
            raise self.error
        self.asked.append((server, login))
        return self.say(b"through")

    def outbound_handler(self, policy):
        self.asked.append(policy)
        return self.say(b"out")

    async def connect_through(self, host, port):
        self.asked.append((host, port))
        if self.error:
            raise self.error
        near, _ = trio.testing.memory_stream_pair()
        return near

    def say(self, word):
        async def handle(stream):
            await stream.send_all(word)

        return handle

    def listen_at(self, address, host_port):
        self.asked.append(address)
        self.host_port = host_port
        return _Bound(address)


class _Bound:
    def __init__(self, address):
        self.address = address

    async def __aenter__(self):
        return self.address

    async def __aexit__(self, *_):
        return None


class Rig:
    def __init__(self, kernel):
        self.backend = ScriptedBackend()
        self.agent = ScriptedProvisioner()
        self.kernel = kernel

    def machine(self):
        manager = plugin_manager(self.backend.factory(), self.agent.factory())
        return Machine(MachineConfig(boot=BootSource(kernel=self.kernel)), plugins=manager)

    @property
    def channels(self):
        return self.backend.platform.machines[-1].memory_channels

    def ready(self, guest=None):
        self.guest = guest or ProxyGuest(self.channels)
        self.agent.link.become(self.guest)


@pytest.fixture
def rig(tmp_path):
    return Rig(tiny_kernel(tmp_path / "kernel"))


async def said(stream):
    async with stream:
        return b"".join([chunk async for chunk in stream])


async def test_a_proxy_is_on_the_loopback_and_served_by_the_guest(rig):
    async with rig.machine() as machine:
        rig.ready()
        async with await machine.socks5() as proxy:
            assert proxy.address.host == "127.0.0.1"
            assert "SOCKS5" in str(proxy.target)
            assert await said(await trio.open_tcp_stream("127.0.0.1", proxy.address.port)) == (
                b"through"
            )
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", proxy.address.port)
    assert rig.guest.asked == [(None, None)]


async def test_it_may_be_a_path_a_server_of_the_users_own_and_ask_for_a_password(rig, tmp_path):
    async with rig.machine() as machine:
        rig.ready()
        words = {"path": tmp_path / "door", "guest_port": 1080, "login": ("joe", "word")}
        async with await machine.socks5(**words) as proxy:
            assert proxy.address == UnixAddress(path=tmp_path / "door")
            assert await said(await trio.open_unix_socket(tmp_path / "door")) == b"through"
    assert rig.guest.asked == [(TcpAddress(port=1080), ("joe", "word"))]


async def test_it_is_told_when_the_guest_can_serve_it_and_not_before(rig):
    async with rig.machine() as machine, trio.open_nursery() as nursery:
        opened = trio.Event()

        async def open_one():
            await machine.socks5()
            opened.set()

        nursery.start_soon(open_one)
        await trio.testing.wait_all_tasks_blocked()
        assert not opened.is_set()
        rig.ready()
        with trio.fail_after(5):
            await opened.wait()


async def test_a_server_that_does_not_start_is_an_error_and_leaves_no_listener(rig, tmp_path):
    async with rig.machine() as machine:
        rig.ready()
        rig.guest.error = GuestError("The server did not start.")
        with pytest.raises(GuestError, match="did not start"):
            await machine.socks5(path=tmp_path / "door")
        assert not (tmp_path / "door").exists()


async def test_a_stream_through_needs_no_listener_and_a_guest_that_went_is_explained(rig):
    async with rig.machine() as machine:
        rig.ready()
        await (await machine.connect_through("example.com", 443)).aclose()
        assert rig.guest.asked == [("example.com", 443)]
        rig.guest.error = GuestGone("The agent broke off.")
        with pytest.raises(GuestGone, match="broke off"):
            await machine.connect_through("example.com", 443)


async def test_the_outbound_proxy_listens_in_the_guest_with_a_careful_policy(rig):
    async with rig.machine() as machine:
        rig.ready()
        async with await machine.outbound_proxy() as proxy:
            assert proxy.address == TcpAddress(port=1081)
            stream = await rig.channels.guest.connect(rig.guest.host_port)
            assert await said(stream) == b"out"
        assert rig.guest.asked == [OutboundPolicy(), TcpAddress(port=1081)]
        policy = OutboundPolicy(others="deny")
        await machine.outbound_proxy(policy, guest_port=9)
        assert rig.guest.asked[2:] == [policy, TcpAddress(port=9)]


async def test_an_agent_that_can_not_says_so(rig):
    async with rig.machine() as machine:
        rig.ready(PlainGuest())
        for ask in (
            machine.socks5,
            machine.outbound_proxy,
            lambda: machine.connect_through("a", 1),
        ):
            with pytest.raises(ConfigError, match="agent can't forward"):
                await ask()
