"""A VPN in a real guest, against Debian's OpenVPN as the server; row 93 and the kill switch."""

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
from tests.guest.conftest import static_program
from tests.guest.vpn_server import (
    CANARY_PORT,
    INSIDE,
    NAME,
    PAGE_MIB,
    PORT,
    SERVER,
    WEB_PORT,
    VpnServer,
    Wire,
    missing,
    vpn_server,
)

from microvm import GuestError, Machine, MachineConfig, NetConfig, sync
from microvm.forwards import TcpAddress
from microvm.testing.host_clocks import SimulatedClocks
from microvm_guest.image import Silent, compose
from microvm_guest.image.variants import variant
from microvm_guest.openvpn import (
    Challenge,
    Credentials,
    OpenVpnTunnel,
    StateChanged,
    VpnFailed,
    VpnReason,
    VpnState,
    vpn_machine,
)
from microvm_guest.openvpn import sync as openvpn_sync

WHY_NOT = missing()
pytestmark = [
    pytest.mark.linux_guest,
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
]

ME = Credentials("me", 'pass "word" \\ with all')
PATIENCE = str(90 + 10 * PAGE_MIB)
PAGE = f"http://{NAME}:{WEB_PORT}/data"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session", autouse=True)
def vpn_disk() -> None:
    """The image variant; the first time it is fetched and made."""
    compose(variant("vpn"), Silent())


@pytest.fixture(params=["udp", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VpnServer]:
    """A server, by each protocol."""
    with vpn_server(tmp_path, request.param) as server:
        yield server


@pytest.fixture
def udp(tmp_path: Path) -> Iterator[VpnServer]:
    with vpn_server(tmp_path, "udp") as server:
        yield server


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[VpnServer]:
    with vpn_server(tmp_path, "tcp") as server:
        yield server


def config_file(server: VpnServer, *more: str, **other: str) -> Path:
    path = server.folder / "client.ovpn"
    path.write_text(server.client_config(*more, **other))
    return path


@asynccontextmanager
async def tunnel(
    server: VpnServer, *more: str, machine: MachineConfig | None = None, me: Credentials = ME
) -> AsyncIterator[tuple[Machine, OpenVpnTunnel]]:
    config = config_file(server, *more)
    async with (
        Machine(machine or vpn_machine()) as running,
        OpenVpnTunnel(running, config, me) as vpn,
    ):
        yield running, vpn


async def curl(proxy: object, url: str = PAGE) -> "subprocess.CompletedProcess[bytes]":
    return await trio.run_process(
        ["curl", "-sS", "--max-time", PATIENCE, "--socks5-hostname", str(proxy), url],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def fetched(machine: Machine) -> str:
    """The digest of the page that is nowhere but behind the tunnel."""
    async with await machine.socks5() as proxy:
        done = await curl(proxy.address)
    assert done.returncode == 0, done.stderr
    return hashlib.sha256(done.stdout).hexdigest()


async def until(vpn: OpenVpnTunnel, *states: VpnState) -> None:
    """Wait until the tunnel is in one of these."""
    with trio.fail_after(60):
        async for event in vpn.events():
            if isinstance(event, StateChanged) and event.status.state in states:
                return


# --- it works --------------------------------------------------------------------------------


@pytest.mark.soak
async def test_a_guest_without_a_network_fetches_through_the_tunnel(
    server: VpnServer, leaves_nothing: None
) -> None:
    """The name is the VPN's name server's, and the page its web server's."""
    async with tunnel(server) as (machine, vpn):
        with trio.fail_after(60):
            status = await vpn.wait_connected()
        assert status.dns == (INSIDE,)
        assert status.server == f"{SERVER}:{PORT}"
        assert status.local_ip is not None
        assert status.local_ip.startswith("10.66.0.")
        assert await fetched(machine) == server.digest
        async with await machine.connect_through(NAME, WEB_PORT) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            assert await stream.receive_some() != b""
    assert vpn.status.state is VpnState.STOPPED
    assert server.saw_the_client_leave()


@pytest.mark.parametrize("how", ["cancelled", "by an error"])
async def test_the_server_is_told_however_the_block_is_left(udp: VpnServer, how: str) -> None:
    """It keeps the sessions of those that fall silent, and may have no room for the next."""
    config = config_file(udp)
    async with Machine(vpn_machine()) as machine:
        await machine.wait_ready()
        with trio.CancelScope() as scope:
            try:
                async with OpenVpnTunnel(machine, config, ME) as vpn:
                    with trio.fail_after(60):
                        await vpn.wait_connected()
                    assert not udp.saw_the_client_leave()
                    if how == "by an error":
                        raise ZeroDivisionError
                    scope.cancel()
                    await trio.sleep_forever()
            except ZeroDivisionError:
                pass
        assert udp.saw_the_client_leave()
        resolv_conf = await machine.run(["busybox", "cat", "/etc/resolv.conf"], check=True)
        assert resolv_conf.stdout == b"", "nobody is to ask the VPN's name servers now"


@pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")
async def test_a_guest_with_passt_connects_by_its_own_network(udp: VpnServer) -> None:
    machine = vpn_machine(nets=(NetConfig(backend="passt"),))
    async with tunnel(udp, machine=machine) as (running, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        assert await fetched(running) == udp.digest
        # What is not said by DHCP is what the VPN says: nobody else is asked for names.
        shown = await running.run(["busybox", "cat", "/etc/resolv.conf"], check=True)
        assert shown.stdout == f"nameserver {INSIDE}\n".encode()
        # A program of the guest's may stand behind the kill switch too.
        for user, device in (("1080", b"dev tun0"), ("root", b"dev eth0")):
            way = await running.run(["ip", "route", "get", "9.9.9.9"], user=user, check=True)
            assert device in way.stdout


async def test_the_readmes_example_is_what_runs(udp: VpnServer, tmp_path: Path) -> None:
    """Word for word, but for the file's name and the page's."""
    readme = (ROOT / "README.md").read_text()
    (example,) = (
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "OpenVpn" in block
    )
    assert len([line for line in example.splitlines() if line.strip()]) == 10
    config = config_file(udp)
    program = example.replace("office.ovpn", str(config)).replace("http://wiki/", PAGE)
    assert program != example
    auth = tmp_path / "auth"
    auth.write_text(f"{ME.username}\n{ME.password}\n")
    program = program.replace("office.auth", str(auth))
    with trio.fail_after(100):
        done = await trio.run_process(
            [sys.executable, "-c", textwrap.dedent(program)], capture_stdout=True
        )
    assert hashlib.sha256(done.stdout).hexdigest() == udp.digest


# --- nothing leaks ---------------------------------------------------------------------------


@pytest.mark.parametrize("nets", [(), ("passt",)], ids=["no-network", "passt"])
async def test_with_the_server_killed_requests_fail_at_once_and_nothing_leaks(
    udp: VpnServer, nets: tuple[str, ...]
) -> None:
    """Complaint 4: the kill switch. The host's interfaces are watched for names that are asked, and
    for a port that anybody could reach."""
    if nets and shutil.which("passt") is None:
        pytest.skip("needs passt")
    machine = vpn_machine(nets=tuple(NetConfig(backend=name) for name in nets))
    wire = Wire(NAME, "example.com")
    async with tunnel(udp, machine=machine) as (running, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        assert await fetched(running) == udp.digest
        async with await running.socks5() as proxy:
            udp.kill()
            await until(vpn, VpnState.RECONNECTING)
            wire.others()
            for url in (PAGE, f"http://{SERVER}:{CANARY_PORT}/", "http://example.com/"):
                begin = time.monotonic()
                done = await curl(proxy.address, url)
                assert done.returncode == 97, done.stderr  # CURLE_PROXY: SOCKS5 said no
                assert time.monotonic() - begin < 10
            assert vpn.status.state is VpnState.RECONNECTING
            assert wire.others() == []
            udp.start()
            await until(vpn, VpnState.CONNECTED)
            assert (await curl(proxy.address)).returncode == 0
            assert vpn.status.connects == 2
        assert wire.others() == []
    wire.close()


async def test_a_server_that_has_forgotten_its_tokens_is_given_the_password(
    udp: VpnServer,
) -> None:
    """Their key is of the server's process, so each restart refuses all of them."""
    udp.stop()
    udp.extra = ("--auth-gen-token",)
    udp.start()
    async with tunnel(udp) as (machine, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        udp.kill()
        await until(vpn, VpnState.RECONNECTING)
        udp.start()
        await until(vpn, VpnState.CONNECTED)
        assert "auth-token authentication failed" in udp.said()
        assert vpn.status.connects == 2
        assert await fetched(machine) == udp.digest


@pytest.mark.skipif(shutil.which("passt") is None, reason="needs passt")
async def test_the_wire_is_watched_by_eyes_that_see(udp: VpnServer) -> None:
    """The agent, who is not behind the kill switch, does reach the canary."""
    wire = Wire(NAME)
    config = vpn_machine(nets=(NetConfig(backend="passt"),))
    async with Machine(config) as machine:
        guest = await machine.wait_ready()
        async with await guest.connect_to(TcpAddress(host=SERVER, port=CANARY_PORT)):
            pass
    assert wire.others() != []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"\x06Inside\x07example\0", ("127.0.0.1", 53))
    assert wire.others() != []
    wire.close()


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "localhost"],
)
async def test_the_guests_own_ports_are_not_to_be_had_through_its_proxy(
    udp: VpnServer, target: str
) -> None:
    """Or a client could ask for the guest's way out to the host, past the tunnel."""
    async with tunnel(udp) as (machine, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        async with await machine.outbound_proxy():
            with trio.fail_after(30), pytest.raises(GuestError):
                await machine.connect_through(target, 1081)


async def test_before_a_tunnel_there_is_no_way_and_after_it_none_is_left(udp: VpnServer) -> None:
    config = config_file(udp)
    nets = (NetConfig(backend="passt"),) if shutil.which("passt") else ()
    async with Machine(vpn_machine(nets=nets)) as machine:
        with trio.fail_after(30), pytest.raises(GuestError):
            await machine.connect_through(SERVER, CANARY_PORT)
        async with OpenVpnTunnel(machine, config, ME) as vpn:
            with trio.fail_after(60):
                await vpn.wait_connected()
        with trio.fail_after(30), pytest.raises(GuestError):
            await machine.connect_through(SERVER, CANARY_PORT)


async def test_the_daemon_killed_in_the_guest_ends_in_a_named_state_and_no_way(
    udp: VpnServer,
) -> None:
    """Row 93."""
    async with tunnel(udp) as (machine, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
            await machine.run(["busybox", "killall", "-9", "openvpn"], check=True)
            status = await vpn.wait_ended()
        assert (status.state, status.reason) == (VpnState.FAILED, VpnReason.DAEMON_DIED)
        with trio.fail_after(30), pytest.raises(GuestError):
            await machine.connect_through(INSIDE, WEB_PORT)
        await vpn.start(config_file(udp), ME)
        with trio.fail_after(60):
            await vpn.wait_connected()
        assert await fetched(machine) == udp.digest


@pytest.mark.parametrize(
    ("named", "asked", "reason"),
    [
        ("192.0.2.1", "127.0.0.1", VpnReason.PROTOCOL),
        ("localhost", "localhost", VpnReason.NAME_REFUSED),
        ("127.0.0.1", "127.0.0.1", None),
    ],
    ids=["not-named", "a-name-that-leads-there", "named"],
)
async def test_a_daemon_that_was_taken_over_opens_nothing_of_the_hosts(
    tmp_path: Path, named: str, asked: str, reason: VpnReason | None
) -> None:
    """Row 93. That it would get in is shown by a configuration which names the very address."""
    daemon = static_program("hostile_openvpn", tmp_path)
    got_in = trio.Event()

    async def see(stream: trio.SocketStream) -> None:
        async with stream:
            if await stream.receive_some() == b"got in\n":
                got_in.set()

    async with trio.open_nursery() as nursery, Machine(vpn_machine()) as machine:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, see, [listener])
        port = listener.socket.getsockname()[1]
        config = tmp_path / "c.ovpn"
        config.write_text(
            f"client\nremote {named} {port} tcp\nsetenv UV_ASKS_FOR {asked},{port},tcp-client\n"
            "<ca>\nx\n</ca>\n"
        )
        guest = await machine.wait_ready()
        await guest.run(["busybox", "mkdir", "-p", "/usr/local/sbin"], check=True)
        await guest.files.write_bytes("/usr/local/sbin/openvpn", daemon, mode=0o755)
        async with OpenVpnTunnel(machine, config) as vpn:
            with trio.fail_after(60):
                if reason is None:
                    await got_in.wait()
                else:
                    assert (await failure(vpn)).reason is reason
                    await vpn.wait_ended()
                    await trio.sleep(1)  # it goes on trying until it is killed
        assert got_in.is_set() == (reason is None)
        nursery.cancel_scope.cancel()


# --- secrets ---------------------------------------------------------------------------------


async def test_secrets_are_in_no_file_and_on_no_command_line_of_the_guest(
    udp: VpnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 93. The management socket's directory is root's alone."""
    caplog.set_level("DEBUG")
    key = udp.authority.read("client.key").splitlines()[1]
    secret = "correct horse battery"
    udp.set_password("me", secret)
    async with tunnel(udp, me=Credentials("me", secret)) as (machine, vpn):
        events = vpn.events()
        with trio.fail_after(60):
            await vpn.wait_connected()
        script = f"busybox grep -rlF -e '{key}' -e '{secret}' /run /tmp /etc /.scratch 2>/dev/null"
        assert (await machine.run(["sh", "-c", script])).stdout == b""
        listing = (await machine.run(["busybox", "ps", "-o", "args"], check=True)).stdout.decode()
        assert "openvpn --config stdin" in listing
        shown = (await machine.run(["busybox", "stat", "-c", "%a %u", "/run/microvm-vpn"])).stdout
        assert shown == b"700 0\n"
        assert (
            await machine.run(["busybox", "ls", "/run/microvm-vpn"], user="1080")
        ).success is False
    said = caplog.text + "".join([str(event) async for event in events])
    assert secret not in said
    assert key not in said


# --- what goes wrong -------------------------------------------------------------------------


async def failure(vpn: OpenVpnTunnel) -> VpnFailed:
    with trio.fail_after(100), pytest.raises(VpnFailed) as caught:
        await vpn.wait_connected()
    assert vpn.status.state is VpnState.FAILED
    assert vpn.status.reason is caught.value.reason
    assert caught.value.remedy
    return caught.value


async def test_a_wrong_password_is_named_and_the_right_one_then_works(server: VpnServer) -> None:
    async with tunnel(server, me=Credentials("me", "wrong")) as (_, vpn):
        assert (await failure(vpn)).reason is VpnReason.AUTH_FAILED
        await vpn.wait_ended()
        with trio.fail_after(60):
            await vpn.stop()
            await vpn.start(config_file(server), ME)
            await vpn.wait_connected()


async def test_a_password_that_is_not_there_is_named(udp: VpnServer) -> None:
    async with tunnel(udp, me=Credentials()) as (_, vpn):
        assert (await failure(vpn)).reason is VpnReason.CREDENTIALS_MISSING


@pytest.mark.slow
async def test_a_password_revoked_midway_is_named(udp: VpnServer) -> None:
    """At the next renegotiation of keys the server says AUTH_FAILED."""
    udp.stop()
    udp.extra = ("--reneg-sec", "8")
    udp.start()
    async with tunnel(udp) as (machine, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        udp.set_password("me", "another")
        with trio.fail_after(100):
            status = await vpn.wait_ended()
        assert (status.state, status.reason) == (VpnState.FAILED, VpnReason.AUTH_FAILED)
        with trio.fail_after(30), pytest.raises(GuestError):
            await machine.connect_through(INSIDE, WEB_PORT)


async def test_the_servers_expired_certificate_is_named(udp: VpnServer) -> None:
    udp.stop()
    udp.certificate = "expired-server"
    udp.start()
    async with tunnel(udp) as (_, vpn):
        assert (await failure(vpn)).reason is VpnReason.SERVER_CERTIFICATE_EXPIRED


@pytest.mark.slow
async def test_ones_own_expired_certificate_is_named(tcp: VpnServer) -> None:
    config = config_file(tcp, "hand-window 10", certificate="expired-client")
    async with Machine(vpn_machine()) as machine, OpenVpnTunnel(machine, config, ME) as vpn:
        assert (await failure(vpn)).reason is VpnReason.OWN_CERTIFICATE_EXPIRED


@pytest.mark.slow
async def test_a_server_that_does_not_answer_is_named(server: VpnServer) -> None:
    server.kill()
    async with tunnel(server, "connect-timeout 5") as (_, vpn):
        assert (await failure(vpn)).reason is VpnReason.SERVER_UNREACHABLE


@pytest.mark.slow
async def test_a_name_that_is_nobodys_is_named(udp: VpnServer) -> None:
    config = config_file(udp, host="nobody.invalid")
    async with Machine(vpn_machine()) as machine, OpenVpnTunnel(machine, config, ME) as vpn:
        assert (await failure(vpn)).reason is VpnReason.NAME_NOT_FOUND


@pytest.mark.slow
async def test_a_keys_passphrase_is_asked_for_and_a_wrong_one_is_named(udp: VpnServer) -> None:
    udp.authority.encrypt("client", "open sesame")
    config = config_file(udp, certificate="client.enc")
    async with Machine(vpn_machine()) as machine, OpenVpnTunnel(machine) as vpn:
        for wrong in (None, "wrong"):
            await vpn.start(config, attrs.evolve(ME, key_passphrase=wrong))
            assert (await failure(vpn)).reason is VpnReason.KEY_PASSPHRASE
            await vpn.stop()
        await vpn.start(config, attrs.evolve(ME, key_passphrase="open sesame"))
        with trio.fail_after(60):
            await vpn.wait_connected()


@pytest.mark.slow
async def test_a_static_challenge_is_put_to_the_user(udp: VpnServer) -> None:
    asked = []

    async def answer(challenge: Challenge) -> str:
        asked.append(challenge)
        return "123456"

    udp.set_password("me", "SCRV1:cGFzcw==:MTIzNDU2")
    me = Credentials("me", "pass", answer=answer)
    async with tunnel(udp, 'static-challenge "Your code?" 1', me=me) as (_, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
    assert asked == [Challenge(text="Your code?", echo=True)]


@pytest.mark.slow
async def test_a_directive_that_openvpn_does_not_take_is_a_bad_configuration(
    udp: VpnServer,
) -> None:
    async with tunnel(udp, "tls-version-min 9.9") as (_, vpn):
        error = await failure(vpn)
    assert error.reason is VpnReason.BAD_CONFIG
    assert "tls-version-min" in error.message


# --- sleep -----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_after_a_sleep_of_the_hosts_the_tunnel_is_made_anew(udp: VpnServer) -> None:
    """Complaint 1: nobody waits for a timeout to find out that the server has given us up."""
    clocks = SimulatedClocks()
    async with (
        Machine(vpn_machine(), clocks=clocks) as machine,
        OpenVpnTunnel(machine, config_file(udp), ME) as vpn,
    ):
        with trio.fail_after(60):
            await vpn.wait_connected()
        # A step of NTP's, a short sleep, a pause of a moment: the server has not missed us.
        clocks.set_wall(0.2)
        await trio.sleep(0.5)
        clocks.sleep(1)
        await machine.pause()
        await machine.resume()
        await trio.sleep(2)
        assert (vpn.status.state, vpn.status.connects) == (VpnState.CONNECTED, 1)
        clocks.sleep(600)
        await until(vpn, VpnState.RECONNECTING)
        await until(vpn, VpnState.CONNECTED)
        assert await fetched(machine) == udp.digest


# --- the command -----------------------------------------------------------------------------


def test_the_command_connects_serves_and_ends_at_ctrl_c(udp: VpnServer, tmp_path: Path) -> None:
    auth = tmp_path / "auth"
    auth.write_text(f"{ME.username}\n{ME.password}\n")
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
    words = ["vpn", "run", str(config_file(udp)), "--socks", address, "--auth-file", str(auth)]
    argv = [sys.executable, "-m", "microvm", *words, "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1].get("state") == "connected":
                break
        done = subprocess.run(
            ["curl", "-sS", "--socks5-hostname", address, PAGE], capture_output=True, check=False
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert udp.saw_the_client_leave()
    assert hashlib.sha256(done.stdout).hexdigest() == udp.digest, done.stderr
    assert [event["event"] for event in events][:2] == ["starting", "ready"]
    assert events[1]["listen"] == address


def test_the_command_says_what_is_wrong_and_ends(udp: VpnServer, tmp_path: Path, cli) -> None:
    auth = tmp_path / "auth"
    auth.write_text("me\nwrong\n")
    words = ["vpn", "run", str(config_file(udp)), "--socks", "127.0.0.1:0"]
    done = cli(*words, "--auth-file", str(auth))
    assert done.returncode == 1
    assert b"refused the user name or the password" in done.stderr
    (udp.folder / "client.ovpn").write_text("client\nremote x\nup /bin/sh\n<ca>\n</ca>\n")
    done = cli(*words)
    assert done.returncode == 125
    assert b"client.ovpn line 3: 'up' is not allowed." in done.stderr


@pytest.mark.slow
def test_a_servers_question_is_put_to_who_sits_at_the_terminal(udp: VpnServer) -> None:
    """Also where the configuration brings name and password itself."""
    udp.set_password("me", "SCRV1:cGFzcw==:MTIzNDU2")
    inline = "<auth-user-pass>\nme\npass\n</auth-user-pass>"
    config = str(config_file(udp, 'static-challenge "Your code?" 0', inline))
    argv = [sys.executable, "-m", "microvm", "vpn", "run", config, "--socks", "127.0.0.1:0"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, argv)
    before = termios.tcgetattr(terminal)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 4096)

    until(b"Your code? ")
    assert not termios.tcgetattr(terminal)[3] & termios.ECHO
    os.write(terminal, b"123456\r")
    until(b"VPN connected to ")
    assert termios.tcgetattr(terminal) == before
    os.write(terminal, b"\x03")
    with suppress(OSError):  # EIO: the other side has closed
        until(b"nothing that it says")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130, shown
    os.close(terminal)
    assert b"123456" not in shown


# --- without async ---------------------------------------------------------------------------


def test_a_tunnel_without_async(udp: VpnServer) -> None:
    config = config_file(udp)
    with (
        sync.Machine(vpn_machine()) as machine,
        openvpn_sync.OpenVpnTunnel(machine, config, ME) as vpn,
        sync.fail_after(60),
    ):
        for event in vpn.events():
            if isinstance(event, StateChanged) and event.status.state is VpnState.CONNECTED:
                break
        assert vpn.wait_connected().dns == (INSIDE,)
        with machine.socks5() as proxy:
            done = subprocess.run(
                ["curl", "-sS", "--socks5-hostname", str(proxy.address), PAGE],
                capture_output=True,
                check=False,
            )
        assert hashlib.sha256(done.stdout).hexdigest() == udp.digest, done.stderr
        vpn.stop()
        assert vpn.wait_ended().state is VpnState.STOPPED
        with pytest.raises(GuestError):
            machine.connect_through(NAME, WEB_PORT)


# --- ends ------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_machine_that_ends_ends_its_tunnel_with_a_name(
    udp: VpnServer, leaves_nothing: None
) -> None:
    async with tunnel(udp) as (machine, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        await machine.stop()
        with trio.fail_after(60):
            status = await vpn.wait_ended()
        assert (status.state, status.reason) == (VpnState.FAILED, VpnReason.DAEMON_DIED)


@pytest.mark.slow
async def test_a_tunnel_cancelled_at_any_moment_leaves_nothing(
    udp: VpnServer, leaves_nothing: None
) -> None:
    """And the machine can have another."""
    config = config_file(udp)
    async with Machine(vpn_machine()) as machine:
        await machine.wait_ready()
        for patience in (0.0, 0.1, 0.5, 1.0, 2.0):
            vpn = OpenVpnTunnel(machine, config, ME)
            with trio.move_on_after(patience):
                async with vpn:
                    await vpn.wait_ended()
            assert vpn.status.state is VpnState.STOPPED
        async with OpenVpnTunnel(machine, config, ME) as vpn:
            with trio.fail_after(60):
                await vpn.wait_connected()
            assert await fetched(machine) == udp.digest
