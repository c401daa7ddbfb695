"""Through a guest by SOCKS5, and out of one that has no network, with a real guest."""

import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
from tests.guest.conftest import static_program
from tools.socks_clients import (
    SSH_PROGRAMS,
    fetch_by_httpx,
    fetch_by_pysocks,
    missing,
    run_by_ssh,
    sshd,
)

from microvm import GuestError, GuestRefused, Machine, MachineConfig, NetConfig
from microvm.forwards import TcpAddress
from microvm.outbound import OutboundPolicy

pytestmark = pytest.mark.linux_guest

MIB = 1024 * 1024
SMALL = MachineConfig(mem_size_mib=64)
PATTERN = "head -c 16777216 /dev/urandom"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@asynccontextmanager
async def page(machine: Machine) -> AsyncIterator[str]:
    """A web server on the guest's loopback, by a name that only the guest knows; its digest."""
    script = f"mkdir -p /www; {PATTERN} > /www/data; echo 127.0.0.1 inside.example >> /etc/hosts"
    await machine.run(["sh", "-c", script], check=True)
    told = await machine.run(["sha256sum", "/www/data"], check=True)
    words = ["busybox", "httpd", "-f", "-p", "127.0.0.1:8000", "-h", "/www"]
    async with machine.spawn(words):
        while True:
            try:
                stream = await machine.connect_through("127.0.0.1", 8000)
            except GuestRefused:
                await trio.sleep(0.1)
            else:
                await stream.aclose()
                break
        yield told.stdout.decode().split()[0]


async def test_curl_fetches_through_a_small_guest_which_resolves_the_name(
    leaves_nothing: None,
) -> None:
    async with Machine(SMALL) as machine, page(machine) as wanted:
        async with await machine.socks5() as proxy:
            assert isinstance(proxy.address, TcpAddress)
            assert proxy.address.host == "127.0.0.1"
            words = ["curl", "-sS", "--socks5-hostname", str(proxy.address)]
            done = await trio.run_process(
                [*words, "http://inside.example:8000/data"], capture_stdout=True
            )
            assert digest(done.stdout) == wanted
            done = await trio.run_process(
                [*words, "http://inside.example:1/"],
                capture_stderr=True,
                capture_stdout=True,
                check=False,
            )
            assert done.returncode == 97
            assert b"(5)" in done.stderr
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", proxy.address.port)


async def test_python_clients_fetch_through_a_guest_as_curl_does() -> None:
    async with (
        Machine(SMALL) as machine,
        page(machine) as wanted,
        await machine.socks5() as proxy,
    ):
        assert isinstance(proxy.address, TcpAddress)
        data = await fetch_by_httpx(proxy.address, "http://inside.example:8000/data")
        assert digest(data) == wanted
        data = await fetch_by_pysocks(proxy.address, "inside.example", 8000, "/data")
        assert digest(data) == wanted
        with pytest.raises(OSError, match="0x05: Connection refused"):
            await fetch_by_pysocks(proxy.address, "inside.example", 1)


async def test_a_connection_under_way_fails_when_its_way_is_gone() -> None:
    """As when a VPN is found to be down: the kernel itself would go on knocking for two minutes."""
    network = NetConfig(backend="null", mac="02:00:00:00:00:01")
    nobody = "10.9.0.5"
    # Without ARP nobody notices that there is nobody.
    setup = "ip link set eth0 arp off; ip link set eth0 up; ip addr add 10.9.0.1/24 dev eth0"
    async with Machine(attrs.evolve(SMALL, nets=(network,))) as machine:
        await machine.run(["sh", "-c", setup], check=True)
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                with trio.fail_after(30), pytest.raises(GuestError, match="unreachable"):
                    await machine.connect_through(nobody, 80)

            nursery.start_soon(connect)
            looked = "until grep -q ' 0500090A:0050 02 ' /proc/net/tcp; do sleep 0.1; done"
            await machine.run(["sh", "-c", looked], check=True)
            await machine.run(["ip", "route", "add", "unreachable", nobody], check=True)


def lacking(*programs: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(missing(*programs)), reason=f"needs {missing(*programs)}")


@lacking(*SSH_PROGRAMS, "passt")
async def test_openssh_has_a_session_through_the_guest_and_its_network(tmp_path: Path) -> None:
    """With data both ways, more than any buffer holds, and its exit code; sshd is the host's."""
    data = os.urandom(4 * MIB)
    network = NetConfig(backend="passt", options={"host_access": True})
    with sshd(tmp_path) as words:
        async with Machine(attrs.evolve(SMALL, nets=(network,))) as machine:
            shown = (await machine.run(["ip", "route"], check=True)).stdout.decode()
            gateway = shown.split("default via ")[1].split()[0]
            async with await machine.socks5() as proxy:
                assert isinstance(proxy.address, TcpAddress)
                command = "sha256sum; exit 7"
                done = await run_by_ssh(proxy.address, words, gateway, command, data)
    assert (done.returncode, done.stdout) == (7, f"{digest(data)}  -\n".encode()), done.stderr


async def test_a_stream_through_the_guest_needs_no_listener() -> None:
    async with Machine(SMALL) as machine, page(machine) as wanted:
        async with await machine.connect_through("inside.example", 8000) as stream:
            await stream.send_all(b"GET /data HTTP/1.0\r\n\r\n")
            await stream.send_eof()
            answer = b"".join([chunk async for chunk in stream])
        assert digest(answer.partition(b"\r\n\r\n")[2]) == wanted
        with pytest.raises(GuestRefused, match="connection refused"):
            await machine.connect_through("localhost", 1)
        with trio.fail_after(5), pytest.raises(GuestError, match="network unreachable"):
            await machine.connect_through("example.com", 80)  # there is no network, and no waiting


async def test_the_server_is_a_user_of_its_own() -> None:
    async with Machine(MachineConfig(provisioners=("agent", "socks5"))) as machine:
        listing = (await machine.run(["ps", "-o", "user,args"], check=True)).stdout.decode()
    (line,) = [line for line in listing.splitlines() if "--socks5" in line]
    assert line.split()[0] == "1080"


async def test_what_the_agents_server_is_replaced_by_is_used() -> None:
    """A server of the user's own: here the agent's program once more, on another port."""
    async with Machine(SMALL) as machine, page(machine) as wanted:
        own = ["/proc/1/exe", "--socks5", "127.0.0.1", "9999", "0", "0"]
        async with machine.spawn(own) as process:
            assert await process.stdout.receive_some() == b"127.0.0.1 9999 0\n"
            async with await machine.socks5(guest_port=9999) as proxy:
                words = ["curl", "-sS", "--socks5-hostname", str(proxy.address)]
                done = await trio.run_process(
                    [*words, "http://inside.example:8000/data"], capture_stdout=True
                )
                assert digest(done.stdout) == wanted


# --- out of a guest without a network --------------------------------------------------------


@pytest.fixture
def shouting() -> Iterator[int]:
    """A TCP server of the host's that answers in capitals; its port."""
    source = (
        "import socketserver\n"
        "class Shout(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.wfile.write(self.rfile.readline().upper())\n"
        "with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Shout) as server:\n"
        "    print(server.server_address[1], flush=True)\n"
        "    server.serve_forever()\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()


def octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


async def ask(machine: Machine, raw: bytes, port: int = 1081) -> bytes:
    """What the guest's loopback answers, as busybox's nc sees it."""
    script = f"(printf '{octal(raw)}'; sleep 2) | nc 127.0.0.1 {port}"
    return (await machine.run(["sh", "-c", script])).stdout


def connect_request(host: str, port: int) -> bytes:
    name = host.encode()
    return b"\5\1\0\5\1\0\3" + bytes((len(name),)) + name + port.to_bytes(2, "big")


async def test_a_guest_without_a_network_reaches_what_the_policy_allows(shouting: int) -> None:
    policy = OutboundPolicy(allow=(f"127.0.0.1:{shouting}",))
    async with Machine(SMALL) as machine, await machine.outbound_proxy(policy) as proxy:
        assert proxy.address == TcpAddress(port=1081)
        answer = await ask(machine, connect_request("localhost", shouting) + b"hello\n")
        assert answer[2:4] == b"\5\0"
        assert answer.endswith(b"HELLO\n")
        for host, port in (("localhost", shouting + 1), ("169.254.169.254", 80), ("127.1", 22)):
            assert (await ask(machine, connect_request(host, port)))[2:4] == b"\5\2"


async def test_by_default_the_host_itself_is_not_reached(shouting: int) -> None:
    """Row 92."""
    async with Machine(SMALL) as machine, await machine.outbound_proxy() as proxy:
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "2130706433"):
            assert (await ask(machine, connect_request(host, shouting)))[2:4] == b"\5\2"
        assert proxy.connections == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 1081)).close()


async def test_datagrams_of_a_guest_without_a_network_go_out_and_come_back(
    tmp_path: Path,
) -> None:
    client = static_program("socks5_udp", tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(60)
        port = peer.getsockname()[1]

        def echo() -> bytes:
            data, address = peer.recvfrom(99)
            peer.sendto(data.upper(), address)
            return data

        policy = OutboundPolicy(allow=("127.0.0.1",))
        async with Machine(SMALL) as machine:
            script = "cat > /tmp/client && chmod +x /tmp/client"
            await machine.run(["sh", "-c", script], stdin=client, check=True)
            words = ["/tmp/client", "1081", "127.0.0.1", str(port), "datagram"]
            async with await machine.outbound_proxy(policy), trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, echo)
                assert (await machine.run(words)).stdout == b"DATAGRAM\n"
            async with await machine.outbound_proxy(attrs.evolve(policy, udp=False)):
                assert (await machine.run(words)).stdout == b"refused 7\n"


# --- many ------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")
async def test_1000_connections_at_once_through_a_guest_of_64_mib(many_descriptors: None) -> None:
    """Each says its number to a server of the host's, by the guest's network, and hears it back."""

    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            # The passt of Debian 12 resets a connection whose server says nothing for 16 to 24 s
            # (docs/devices/net.md), and a slow machine is longer about the last of a thousand.
            await stream.send_all(b"!")
            async for chunk in stream:
                await stream.send_all(chunk)

    config = MachineConfig(
        mem_size_mib=64, nets=(NetConfig(backend="passt", options={"host_access": True}),)
    )
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as servers:
        servers.start_soon(trio.serve_listeners, echo, listeners)
        async with Machine(config) as machine:
            shown = (await machine.run(["ip", "route"], check=True)).stdout.decode()
            gateway = shown.split("default via ")[1].split()[0]
            streams: list[trio.abc.HalfCloseableStream] = []
            at_once = trio.CapacityLimiter(20)

            async def open_one() -> None:
                async with at_once:
                    stream = await machine.connect_through(gateway, port)
                    assert await stream.receive_some(1) == b"!"
                    streams.append(stream)

            async with trio.open_nursery() as nursery:
                for _ in range(1000):
                    nursery.start_soon(open_one)

            async def talk(number: int) -> None:
                said = b"%06d" % number
                await streams[number].send_all(said)
                heard = b""
                while len(heard) < 6:
                    heard += await streams[number].receive_some(6 - len(heard))
                assert heard == said

            async with trio.open_nursery() as nursery:
                for number in range(1000):
                    nursery.start_soon(talk, number)
            for stream in streams:
                await trio.aclose_forcefully(stream)
        servers.cancel_scope.cancel()


# --- the command -----------------------------------------------------------------------------


def test_the_command_serves_until_it_is_interrupted(tmp_path: os.PathLike[str]) -> None:
    door = f"{os.fspath(tmp_path)}/door"
    words = ["socks5", "--json", "--net", "null", "--listen", f"unix:{door}"]
    argv = [sys.executable, "-m", "microvm", *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "connections":
                break
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(door)
            client.sendall(connect_request("localhost", 1))
            answer = b""
            while len(answer) < 12:
                answer += client.recv(99)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert [event["event"] for event in events] == ["starting", "ready", "connections"]
    assert events[1]["listen"] == door
    assert answer[2:4] == b"\5\5"
    assert not os.path.exists(door)


def test_a_program_that_reads_no_further_keeps_its_proxy(tmp_path: os.PathLike[str]) -> None:
    """It has what it wanted; whatever else is told, the proxy serves, and SIGTERM ends it."""
    door = f"{os.fspath(tmp_path)}/door"
    words = ["socks5", "--json", "--net", "null", "--listen", f"unix:{door}"]
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-m", "microvm", *words], stdout=writer) as process:
        text = b""
        while b'"ready"' not in text:
            text += os.read(reader, 65536)
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"\n")
        os.set_blocking(writer, True)
        for _ in range(4):  # connections are counted once a second
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(door)
                client.sendall(connect_request("localhost", 1))
                answer = b""
                while len(answer) < 12:
                    answer += client.recv(99)
                time.sleep(1.1)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()
            os.close(reader)
            os.close(writer)
