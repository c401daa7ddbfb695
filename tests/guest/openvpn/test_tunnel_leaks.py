"""A VPN in a real guest: neither a packet nor a secret gets past it; row 93 and the kill switch."""

import shutil
import socket
import time
from pathlib import Path

import pytest
import trio
from tests.guest.conftest import static_program
from tests.guest.openvpn.tunnels import (
    ME,
    PAGE,
    config_file,
    curl,
    failure,
    fetched,
    needs_a_server,
    tunnel,
    until,
)
from tests.guest.vpn_server import CANARY_PORT, INSIDE, NAME, SERVER, WEB_PORT, VpnServer, Wire

from microvm import GuestError, Machine, NetConfig
from microvm.forwards import TcpAddress
from microvm_guest.openvpn import Credentials, OpenVpnTunnel, VpnReason, VpnState, vpn_machine

pytestmark = needs_a_server

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
            "auth-user-pass\n<ca>\nx\n</ca>\n"
        )
        guest = await machine.wait_ready()
        await guest.run(["busybox", "mkdir", "-p", "/usr/local/sbin"], check=True)
        await guest.files.write_bytes("/usr/local/sbin/openvpn", daemon, mode=0o755)
        async with OpenVpnTunnel(machine, config, ME) as vpn:
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


async def test_whoever_dials_the_host_in_the_daemons_place_is_told_nothing(
    udp: VpnServer, tmp_path: Path
) -> None:
    """Row 93. It takes no privilege to dial, and one that never stops would be the first to come.

    That it does get in where somebody waits, once, is shown by a port that is there for it.
    """
    ports = (1024, 1025, 1026, 1027, 1028, 1080, 1081, 1082, 1194, 1 << 31, (1 << 31) + 1)
    there = 7000
    impostor = static_program("vsock_impostor", tmp_path)
    config = config_file(udp)
    async with Machine(vpn_machine()) as machine:
        guest = await machine.wait_ready()
        await guest.files.write_bytes("/tmp/impostor", impostor, mode=0o755)
        argv = ["/tmp/impostor", *map(str, (*ports, there))]
        listener = machine.listen(there)
        async with await machine.outbound_proxy(), guest.spawn(argv, user="1000") as process:
            async with listener, await listener.accept() as stream:
                await stream.receive_some()  # what is hung up on unread may take our word with it
                await stream.send_all(b"hello")
            async with OpenVpnTunnel(machine, config, ME) as vpn:
                with trio.fail_after(60):
                    await vpn.wait_connected()
                assert await fetched(machine) == udp.digest
                await process.stdin.aclose()
                with trio.fail_after(60):
                    said = b"".join([chunk async for chunk in process.stdout])
    *let_in, last = said.split(b"\n")[:-1]
    assert let_in == [b"7000: hello"]
    assert int(last.removesuffix(b" rounds")) > 10
