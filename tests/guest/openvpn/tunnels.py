"""A tunnel from a guest to Debian's OpenVPN, and what is fetched through it."""

import hashlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tests.guest.vpn_server import NAME, PAGE_MIB, WEB_PORT, VpnServer, missing

from microvm import Machine, MachineConfig
from microvm_guest.openvpn import (
    Credentials,
    OpenVpnTunnel,
    StateChanged,
    VpnFailed,
    VpnState,
    vpn_machine,
)

WHY_NOT = missing()
needs_a_server = [
    pytest.mark.linux_guest,
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
]

ME = Credentials("me", 'pass "word" \\ with all')
PATIENCE = str(90 + 10 * PAGE_MIB)
PAGE = f"http://{NAME}:{WEB_PORT}/data"


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


async def failure(vpn: OpenVpnTunnel) -> VpnFailed:
    with trio.fail_after(100), pytest.raises(VpnFailed) as caught:
        await vpn.wait_connected()
    assert vpn.status.state is VpnState.FAILED
    assert vpn.status.reason is caught.value.reason
    assert caught.value.remedy
    return caught.value
