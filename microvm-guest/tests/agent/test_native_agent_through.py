"""Through the agent's SOCKS5 server from the host: streams, a proxy, and programs that use one.

Two agents beside us stand for the guest's one: one takes commands, the other forwards.
"""

import hashlib
import http.server
import os
import socket
import threading
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest
import trio
from tools.socks_clients import (
    SSH_PROGRAMS,
    fetch_by_httpx,
    fetch_by_pysocks,
    missing,
    run_by_ssh,
    sshd,
    unused_port,
)

from microvm import ConfigError
from microvm.abc import GuestChannels
from microvm.errors import GuestError, GuestGone, GuestRefused
from microvm.forwards import TcpAddress, UnixAddress
from microvm.forwards.opening import ForwardOpener
from microvm_guest.client import AgentClient
from microvm_guest.socks5.through import SERVER_PORT, GuestSocks5
from microvm_guest.socks5.wire import Reply

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="the server becomes a user of its own, which only root's agent can"
)

MIB = 1024 * 1024


class Beside(GuestChannels):
    """The channels to an agent that runs beside us; `gone` is what happens when it has ended."""

    def __init__(self, path):
        self.path = path
        self.gone = False

    async def connect(self, port):
        if self.gone:
            raise GuestGone("The guest has ended.")
        return await trio.open_unix_socket(self.path)

    def listen(self, port):
        raise NotImplementedError


@pytest.fixture(scope="module")
def path(agent, tmp_path_factory):
    with agent.listening(tmp_path_factory.mktemp("through"), "--forward-fd") as path:
        yield path


class Rig:
    def __init__(self, client, channels, nursery):
        self.client = client
        self.channels = channels

        async def ready():
            return client

        self.opener = ForwardOpener(nursery, channels, ready, trio.lowlevel.checkpoint)

    async def proxy(self, begin=None, server=None, login=None):
        handle = await self.client.socks5_handler(server, login)
        return await self.opener.on_host(begin or TcpAddress(port=0), "the guest", handle)


@asynccontextmanager
async def rigged(agent, path):
    """A client of the agent's, and a machine's nursery."""
    ours, theirs = socket.socketpair()
    channels = Beside(path)
    with agent.process("--connected-fd", theirs):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        client = AgentClient(stream, channels)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.serve)
            yield Rig(client, channels, nursery)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def shouting():
    """A server that answers in capitals when all has been said, and its port."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def shout(stream):
        async with stream:
            said = b"".join([chunk async for chunk in stream])
            await stream.send_all(said.upper())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


# --- without a listener ----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_stream_leads_through_the_guest_with_each_way_its_own_end(agent, path, host):
    async with (
        rigged(agent, path) as rig,
        shouting() as port,
        await rig.client.connect_through(host, port) as stream,
    ):
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert b"".join([chunk async for chunk in stream]) == b"HELLO"


async def test_what_the_other_end_says_first_is_not_lost(agent, path):
    """As an SSH server does: it follows the reply at once."""
    async with rigged(agent, path) as rig:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def greet():
                there, _ = listener.accept()
                with there:
                    there.sendall(b"SSH-2.0-first\r\n")

            thread = threading.Thread(target=greet)
            thread.start()
            port = listener.getsockname()[1]
            async with await rig.client.connect_through("localhost", port) as stream:
                said = b"".join([chunk async for chunk in stream])
            thread.join()
        assert said == b"SSH-2.0-first\r\n"


async def test_what_can_not_be_reached_is_told_with_its_reason(agent, path):
    async with rigged(agent, path) as rig:
        port = unused_port()
        with pytest.raises(GuestRefused, match=rf"can't reach localhost:{port}: connection refus"):
            await rig.client.connect_through("localhost", port)
        with pytest.raises(GuestError, match="unknown") as caught:
            await rig.client.connect_through("no-such-host.invalid", 80)
        assert caught.value.reply is Reply.HOST_UNREACHABLE
        assert caught.value.code == "guest.socks5"
        with pytest.raises(ConfigError):
            await rig.client.connect_through("x" * 256, 80)
        rig.channels.gone = True
        with pytest.raises(GuestGone):
            await rig.client.connect_through("localhost", port)


# --- the server's life -----------------------------------------------------------------------


async def test_the_server_is_started_once_also_by_many_at_once(agent, path):
    async with rigged(agent, path) as rig, shouting() as port:

        async def one():
            async with await rig.client.connect_through("localhost", port):
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert (await rig.client.status())["commands"] == 1


async def test_a_server_that_was_killed_is_started_again(agent, path):
    async with rigged(agent, path) as rig, shouting() as port:
        for _ in range(3):
            async with await rig.client.connect_through("localhost", port) as stream:
                await stream.send_eof()
                assert await stream.receive_some() == b""
            await rig.client.run(["pkill", "-KILL", "-f", "microvm-agent --socks5"])


async def test_a_port_that_is_taken_is_no_matter(agent, path):
    with ExitStack() as stack:
        with suppress(OSError):  # somebody else has it, which is as good
            stack.enter_context(socket.create_server(("127.0.0.1", SERVER_PORT)))
        async with (
            rigged(agent, path) as rig,
            shouting() as port,
            await rig.client.connect_through("localhost", port),
        ):
            pass


async def test_a_server_that_does_not_start_is_an_error_with_what_it_said(agent, path, monkeypatch):
    monkeypatch.setattr("microvm_guest.socks5.through.SERVER_UID", 2**32 - 1)
    async with rigged(agent, path) as rig:
        with pytest.raises(GuestError, match=r"did not start: .*can't become user"):
            await rig.client.socks5_handler()


# --- a proxy on the host ---------------------------------------------------------------------


async def say_all(stream, raw, length):
    await stream.send_all(raw)
    got = b""
    while len(got) < length and (data := await stream.receive_some(length - len(got))):
        got += data
    return got


async def test_a_guest_that_has_gone_is_told_in_socks5(agent, path):
    """At once, and not as a connection that just ends."""
    async with rigged(agent, path) as rig, await rig.proxy() as proxy:
        rig.channels.gone = True
        for raw in (b"\x01\x7f\x00\x00\x01", b"\x03\x09localhost", b"\x04" + bytes(16)):
            stream = await trio.open_tcp_stream(proxy.address.host, proxy.address.port)
            async with stream:
                with trio.fail_after(5):
                    said = await say_all(stream, b"\x05\x01\x00\x05\x01\x00" + raw + b"\0\x50", 12)
                assert said == b"\x05\x00\x05" + bytes((Reply.NETWORK_UNREACHABLE, 0, 1)) + bytes(6)


async def test_a_server_of_the_users_own_may_be_used_in_its_place(agent, path):
    async with rigged(agent, path) as rig, shouting() as port:
        other = GuestSocks5(rig.client, rig.channels)
        address = await other._running()
        started = (await rig.client.status())["commands"]
        async with await rig.proxy(server=address) as proxy:
            stream = await trio.open_tcp_stream(proxy.address.host, proxy.address.port)
            async with stream:
                raw = b"\x05\x01\x00\x05\x01\x00\x03\x09localhost" + port.to_bytes(2, "big")
                assert (await say_all(stream, raw, 12))[3] == Reply.SUCCEEDED
        assert (await rig.client.status())["commands"] == started


# --- programs that use one -------------------------------------------------------------------

BODY = os.urandom(4 * MIB)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web():
    """An HTTP server, and its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


async def run(*argv):
    return await trio.run_process(
        argv, capture_stdout=True, capture_stderr=True, check=False, stdin=b""
    )


def needs(*programs):
    lacking = missing(*programs)
    return pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)}")


@needs("curl")
async def test_curl_by_port_and_by_path(agent, path, web, tmp_path):
    url = f"http://localhost:{web}/"
    async with rigged(agent, path) as rig, await rig.proxy() as proxy:
        done = await run("curl", "-sS", "--socks5-hostname", str(proxy.address), url)
        assert (done.returncode, done.stdout == BODY) == (0, True), done.stderr
        async with await rig.proxy(UnixAddress(path=tmp_path / "door")) as door:
            words = ("--proxy", f"socks5h://localhost{door.address}")
            done = await run("curl", "-sS", *words, url)
            assert (done.returncode, done.stdout == BODY) == (0, True), done.stderr


@needs("curl")
async def test_curl_says_what_went_wrong(agent, path):
    async with rigged(agent, path) as rig, await rig.proxy() as proxy:
        words = ("curl", "-sS", "--socks5-hostname", str(proxy.address))
        done = await run(*words, f"http://localhost:{unused_port()}/")
        assert (done.returncode, b"refused" in done.stderr or b"(5)" in done.stderr) == (97, True)
        done = await run(*words, "http://no-such-host.invalid/")
        assert done.returncode == 97
        assert b"(4)" in done.stderr


@needs("curl")
async def test_who_knows_the_password_is_served_and_nobody_else(agent, path, web):
    login = ("joe", "sésame")
    url = f"http://localhost:{web}/"
    async with rigged(agent, path) as rig, await rig.proxy(login=login) as proxy:
        words = ("curl", "-sS", "--socks5-hostname", str(proxy.address))
        done = await run(*words, "--proxy-user", "joe:sésame", url)
        assert (done.returncode, done.stdout == BODY) == (0, True), done.stderr
        for wrong in (("--proxy-user", "joe:sesame"), ("--proxy-user", "jo:sésame"), ()):
            assert (await run(*words, *wrong, url)).returncode == 97
        dead = f"http://localhost:{unused_port()}/"
        done = await run(*words, "--proxy-user", "joe:sésame", dead)
        assert b"(5)" in done.stderr or b"refused" in done.stderr
        rig.channels.gone = True
        with trio.fail_after(10):
            done = await run(*words, "--proxy-user", "joe:sésame", url)
        assert b"(3)" in done.stderr, done.stderr
    async with rigged(agent, path) as rig:
        with pytest.raises(ConfigError, match="password has 1 to 255 bytes"):
            await rig.proxy(login=("joe", ""))


async def test_pysocks(agent, path, web):
    async with rigged(agent, path) as rig, await rig.proxy() as proxy:
        assert await fetch_by_pysocks(proxy.address, "localhost", web) == BODY
        with pytest.raises(OSError, match="0x05: Connection refused"):
            await fetch_by_pysocks(proxy.address, "localhost", unused_port())


async def test_httpx_on_trio(agent, path, web):
    async with rigged(agent, path) as rig, await rig.proxy() as proxy:
        assert await fetch_by_httpx(proxy.address, f"http://localhost:{web}/") == BODY


@needs(*SSH_PROGRAMS)
async def test_openssh_by_proxycommand(agent, path, tmp_path):
    """A session with data both ways, more than any buffer holds, and its exit code."""
    with sshd(tmp_path) as words:
        async with rigged(agent, path) as rig, await rig.proxy() as proxy:
            done = await run_by_ssh(proxy.address, words, "localhost", "sha256sum; exit 7", BODY)
    digest = f"{hashlib.sha256(BODY).hexdigest()}  -\n".encode()
    assert (done.returncode, done.stdout) == (7, digest), done.stderr
