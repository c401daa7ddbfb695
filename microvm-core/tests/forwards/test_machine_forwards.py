"""Forwards of a scripted machine: what the host's sockets do, and that nothing of them stays."""

import os
import resource
import socket
import stat
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from microvm import BootSource, ConfigError, GuestGone, GuestRefused, Machine, MachineConfig
from microvm.abc import Guest
from microvm.forwards import TcpAddress, UnixAddress, VsockAddress
from microvm.forwards import forward as forward_module
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.census import Census
from microvm.testing.platform import ScriptedBackend, ScriptedProvisioner
from microvm.testing.plugins import plugin_manager

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def leaves_nothing():
    before = Census.take()
    yield
    assert Census.take() == before


class SocketGuest(Guest):
    """A guest whose sockets are the streams that a test puts there."""

    def __init__(self, channels):
        self.channels = channels
        self.asked = []
        self.listeners = {}

    async def connect_to(self, address):
        self.asked.append(address)
        if address == TcpAddress(port=81):
            raise GuestRefused("The guest can't connect to 127.0.0.1:81: Connection refused.")
        return await self.channels.connect(5000)

    @asynccontextmanager
    async def listen_at(self, address, host_port):
        self.listeners[address] = host_port
        try:
            yield TcpAddress(port=4321) if address == TcpAddress(port=0) else address
        finally:
            del self.listeners[address]

    async def _never(self, *args, **options):
        raise AssertionError

    run = spawn = ping = status = shutdown = _never


class Rig:
    """A machine, its guest, and what listens in it."""

    def __init__(self, kernel):
        self.backend = ScriptedBackend()
        self.agent = ScriptedProvisioner()
        self.kernel = kernel

    def make(self):
        manager = plugin_manager(self.backend.factory(), self.agent.factory())
        return Machine(MachineConfig(boot=BootSource(kernel=self.kernel)), plugins=manager)

    @property
    def channels(self):
        return self.backend.platform.machines[-1].memory_channels

    def ready(self):
        self.guest = SocketGuest(self.channels)
        self.agent.link.become(self.guest)

    def service(self, port=5000):
        """What serves a vsock port in the guest; 5000 is where `connect_to` leads."""
        return self.channels.guest.listen(port)


@pytest.fixture
def rig(tmp_path):
    return Rig(tiny_kernel(tmp_path / "kernel"))


async def dial(forward):
    return await trio.open_tcp_stream(forward.address.host, forward.address.port)


async def receive_all(stream):
    return b"".join([chunk async for chunk in stream])


# --- into the guest --------------------------------------------------------------------------


async def test_a_port_is_chosen_on_the_loopback_and_leads_to_the_guests(rig):
    async with rig.make() as machine:
        rig.ready()
        async with await machine.forward(guest_port=80) as forward, rig.service() as service:
            assert forward.address.host == "127.0.0.1"
            async with await dial(forward) as client, await service.accept() as server:
                await client.send_all(b"question")
                await client.send_eof()
                assert await receive_all(server) == b"question"
                await server.send_all(b"answer")
                await server.send_eof()
                assert await receive_all(client) == b"answer"
        assert rig.guest.asked == [TcpAddress(port=80)]


async def test_a_client_may_come_before_the_guest_is_ready(rig):
    async with rig.make() as machine, await machine.forward(guest_path="/run/x") as forward:
        async with await dial(forward) as client, rig.service() as service:
            await client.send_all(b"early")
            await trio.testing.wait_all_tasks_blocked(0.01)
            rig.ready()
            async with await service.accept() as server:
                assert await server.receive_some() == b"early"
        assert rig.guest.asked == [UnixAddress(path="/run/x")]


async def test_a_vsock_port_needs_no_agent(rig):
    async with rig.make() as machine:
        rig.agent.link.become(None)
        async with (
            await machine.forward(vsock_port=9000) as forward,
            rig.service(9000) as service,
            await dial(forward) as client,
            await service.accept() as server,
        ):
            await server.send_all(b"hello")
            assert await client.receive_some() == b"hello"


@pytest.mark.parametrize("words", [{"guest_port": 81}, {"vsock_port": 9}])
async def test_a_client_of_a_port_that_nobody_serves_is_reset(rig, words):
    async with rig.make() as machine, await machine.forward(**words) as forward:
        rig.ready()
        async with await dial(forward) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()


async def test_an_agent_that_can_not_forward_costs_its_connections_and_no_more(rig):
    class Old(SocketGuest):
        connect_to, listen_at = Guest.connect_to, Guest.listen_at

    async with rig.make() as machine:
        rig.agent.link.become(Old(rig.channels))
        async with await machine.forward(guest_port=80) as forward, await dial(forward) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        with pytest.raises(ConfigError, match="agent can't forward"):
            await machine.expose(port=1, guest_port=2)


async def test_a_stream_that_breaks_in_the_guest_is_a_reset_on_the_host(rig):
    """A part must not be taken for the whole."""
    async with rig.make() as machine:
        rig.ready()
        async with (
            await machine.forward(guest_port=80) as forward,
            rig.service() as service,
            await dial(forward) as client,
        ):
            server = await service.accept()
            await server.send_all(b"a part")
            assert await client.receive_some() == b"a part"
            await server.aclose()
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
                while True:
                    await client.send_all(b"x")
                    await trio.sleep(0.01)


@pytest.mark.parametrize("whole", [False, True])
async def test_a_forward_that_is_closed_resets_who_has_not_been_sent_all(rig, whole):
    async with rig.make() as machine:
        rig.ready()
        async with (
            await machine.forward(guest_port=80) as forward,
            rig.service() as service,
            await dial(forward) as client,
            await service.accept() as server,
        ):
            await server.send_all(b"all of it" if whole else b"a part")
            if whole:
                await server.send_eof()
                assert await receive_all(client) == b"all of it"
            else:
                assert await client.receive_some() == b"a part"
            await forward.aclose()
            if whole:
                assert await client.receive_some() == b""
            else:
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some()


async def test_a_client_that_does_not_read_holds_up_its_own_sender_only(rig):
    async with rig.make() as machine:
        rig.ready()
        async with (
            await machine.forward(guest_port=80) as forward,
            rig.service() as service,
            await dial(forward),
            await service.accept() as server,
        ):
            sent = 0
            with trio.move_on_after(0.3):
                while sent < 1 << 28:
                    await server.send_all(bytes(65536))
                    await server.wait_send_all_might_not_block()
                    sent += 65536
            async with await dial(forward) as other, await service.accept() as served:
                await served.send_all(b"through")
                assert await other.receive_some() == b"through"


async def test_forwards_come_and_go_while_the_machine_runs(rig):
    async with rig.make() as machine:
        rig.ready()
        one = await machine.forward(guest_port=80)
        other = await machine.forward(guest_port=82)
        async with rig.service() as service, await dial(one) as client, await service.accept():
            assert (one.connections, other.connections) == (1, 0)
            await one.aclose()
            assert one.connections == 0
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
            with pytest.raises(OSError, match="all attempts"):
                await dial(one)
            async with await dial(other):
                pass
        await one.aclose()


async def test_leaving_the_machine_closes_its_forwards(rig):
    async with rig.make() as machine:
        rig.ready()
        forward = await machine.forward(guest_port=80)
        client = await dial(forward)
    async with client:
        with pytest.raises(OSError, match="all attempts"):
            await dial(forward)
    await forward.aclose()
    with pytest.raises(GuestGone):
        await machine.forward(guest_port=80)


async def test_a_port_that_is_taken_is_told_before_anything_is_forwarded(rig):
    with socket.create_server(("127.0.0.1", 0)) as other:
        async with rig.make() as machine:
            port = other.getsockname()[1]
            with pytest.raises(ConfigError, match=f"Can't listen at 127.0.0.1:{port}: Address alr"):
                await machine.forward(guest_port=80, port=port)
            assert machine.outcome is None


# --- paths -----------------------------------------------------------------------------------


async def test_a_path_is_0600_from_its_first_moment_and_goes_with_the_forward(rig, tmp_path):
    """Row 82."""
    path = tmp_path / "door"
    old = os.umask(0)
    try:
        async with rig.make() as machine:
            rig.ready()
            async with await machine.forward(guest_port=80, path=path) as forward:
                assert forward.address == UnixAddress(path=path)
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                async with (
                    rig.service() as service,
                    await trio.open_unix_socket(path) as client,
                    await service.accept() as server,
                ):
                    await server.send_all(b"hello")
                    assert await client.receive_some() == b"hello"
            assert not path.exists()
    finally:
        os.umask(old)


@pytest.mark.parametrize("kind", ["file", "live", "link", "directory"])
async def test_nothing_but_a_dead_socket_of_ours_is_replaced(rig, tmp_path, kind):
    """Row 83."""
    path = tmp_path / "door"
    with socket.socket(socket.AF_UNIX) as live:
        if kind == "file":
            path.write_text("kept")
        elif kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(tmp_path / "elsewhere")
        else:
            live.bind(str(path))
            live.listen(1)
        async with rig.make() as machine:
            with pytest.raises(ConfigError, match="path: "):
                await machine.forward(guest_port=80, path=path)
    assert path.is_symlink() or path.exists()


async def test_a_stale_socket_of_ours_is_replaced(rig, tmp_path):
    """Row 83."""
    path = tmp_path / "door"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with rig.make() as machine, await machine.forward(guest_port=80, path=path):
        (await trio.open_unix_socket(path)).socket.close()


async def test_a_directory_that_others_can_write_is_refused(rig, tmp_path):
    """Row 84."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    async with rig.make() as machine:
        with pytest.raises(ConfigError, match="others can replace"):
            await machine.forward(guest_port=80, path=shared / "door")


async def test_a_path_too_long_for_an_address_works(rig, tmp_path):
    """Row 84."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    async with rig.make() as machine:
        async with await machine.forward(guest_port=80, path=deep / "door"):
            assert stat.S_ISSOCK((deep / "door").stat().st_mode)
        assert not (deep / "door").exists()


# --- out of the guest ------------------------------------------------------------------------


@asynccontextmanager
async def shouting():
    """A service of the host's that answers in capitals, and its port."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def shout(stream):
        async with stream:
            await stream.send_all((await receive_all(stream)).upper())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def ask(stream, text):
    async with stream:
        await stream.send_all(text)
        await stream.send_eof()
        return await receive_all(stream)


async def test_a_service_of_the_hosts_is_offered_at_a_vsock_port(rig):
    async with rig.make() as machine, shouting() as port:
        async with await machine.expose(port=port, vsock_port=7000) as forward:
            assert forward.address == VsockAddress(port=7000)
            assert await ask(await rig.channels.guest.connect(7000), b"hello") == b"HELLO"
        with pytest.raises(GuestRefused):
            await rig.channels.guest.connect(7000)


async def test_it_is_offered_at_a_tcp_port_of_the_guests_by_its_agent(rig):
    async with rig.make() as machine, shouting() as port:
        rig.ready()
        one = await machine.expose(port=port, guest_port=0)
        other = await machine.expose(port=port, guest_path="/run/shout")
        assert one.address == TcpAddress(port=4321)
        assert other.address == UnixAddress(path="/run/shout")
        for host_port in list(rig.guest.listeners.values()):
            assert await ask(await rig.channels.guest.connect(host_port), b"hello") == b"HELLO"
        await one.aclose()
        assert list(rig.guest.listeners) == [UnixAddress(path="/run/shout")]
    assert rig.guest.listeners == {}


async def test_a_vsock_port_that_is_taken_is_told(rig):
    async with rig.make() as machine, machine.listen(7000):
        with pytest.raises(ConfigError, match="7000 has a listener"):
            await machine.expose(port=1, vsock_port=7000)


async def test_a_service_that_is_not_there_costs_the_connection(rig):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with rig.make() as machine, await machine.expose(port=port, vsock_port=7000) as forward:
        stream = await rig.channels.guest.connect(7000)
        assert await stream.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert forward.connections == 0


# --- bounds ----------------------------------------------------------------------------------


async def test_connections_beyond_the_bound_wait_for_one_to_end(rig, monkeypatch):
    monkeypatch.setattr(forward_module, "MAX_CONNECTIONS", 2)
    async with rig.make() as machine:
        rig.ready()
        async with await machine.forward(guest_port=80) as forward, rig.service() as service:
            clients = [await dial(forward) for _ in range(3)]
            served = [await service.accept() for _ in range(2)]
            with trio.move_on_after(0.1) as bound:
                await service.accept()
            assert bound.cancelled_caught
            await clients[0].aclose()
            await served[0].aclose()
            served.append(await service.accept())
            await clients[2].send_all(b"third")
            assert await served[2].receive_some() == b"third"
            for stream in (*clients, *served):
                await stream.aclose()


async def test_a_host_without_descriptors_rests_and_goes_on(rig, caplog):
    """Row 98: no spinning, and who came meanwhile is served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with rig.make() as machine:
        rig.ready()
        async with await machine.forward(guest_port=80) as forward, rig.service() as service:
            client = await dial(forward)
            server = await service.accept()
            late = trio.socket.socket()
            taken = fill_descriptors()
            try:
                await late.connect((forward.address.host, forward.address.port))
                await trio.sleep(0.35)
                assert 1 <= len(caplog.records) <= 5
            finally:
                for fd in taken:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with await service.accept() as second:
                await second.send_all(b"late, but here")
                assert await late.recv(99) == b"late, but here"
            late.close()
            await client.aclose()
            await server.aclose()


def fill_descriptors():
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (used + 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    taken = []
    with pytest.raises(OSError, match="Too many open files"):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    return taken
