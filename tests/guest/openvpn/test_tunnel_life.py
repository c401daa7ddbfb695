"""A VPN in a real guest: it carries, comes back after a sleep, and ends as it should."""

import hashlib
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from tests.guest.openvpn.tunnels import (
    ME,
    PAGE,
    config_file,
    fetched,
    needs_a_server,
    tunnel,
    until,
)
from tests.guest.vpn_server import INSIDE, NAME, PORT, SERVER, WEB_PORT, VpnServer

from microvm import GuestError, Machine, NetConfig, sync
from microvm.testing.host_clocks import SimulatedClocks
from microvm_guest.openvpn import OpenVpnTunnel, StateChanged, VpnReason, VpnState, vpn_machine
from microvm_guest.openvpn import sync as openvpn_sync

pytestmark = needs_a_server

ROOT = Path(__file__).parents[3]


# --- it works --------------------------------------------------------------------------------


@pytest.mark.soak
async def test_a_guest_without_a_network_fetches_through_the_tunnel(
    patient_server: VpnServer, leaves_nothing: None
) -> None:
    """The name is the VPN's name server's, and the page its web server's."""
    server = patient_server
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
