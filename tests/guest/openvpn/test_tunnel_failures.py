"""A VPN in a real guest: whatever goes wrong has a name and a remedy."""

import socket
from typing import Any

import attrs
import pytest
import trio
from tests.guest.openvpn.tunnels import ME, config_file, failure, needs_a_server, tunnel, until
from tests.guest.vpn_server import INSIDE, PORT, SERVER, WEB_PORT, VpnServer

from microvm import GuestError, Machine
from microvm_guest.openvpn import (
    Challenge,
    Credentials,
    OpenVpnTunnel,
    VpnReason,
    VpnState,
    vpn_machine,
)

pytestmark = needs_a_server


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


async def test_a_name_that_is_nobodys_hides_no_other_server(udp: VpnServer) -> None:
    config = config_file(udp, f"remote {SERVER} {PORT}", host="nobody.invalid")
    async with Machine(vpn_machine()) as machine, OpenVpnTunnel(machine, config, ME) as vpn:
        with trio.fail_after(60):
            await vpn.wait_connected()


async def test_a_dead_address_of_a_name_hides_no_other(
    udp: VpnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One host of a round-robin name, or IPv6 that is half there."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *more: Any, **other: Any) -> list[Any]:
        names = ("198.51.100.7", SERVER) if host == "vpn.example" else (host,)
        return [entry for name in names for entry in real(name, *more, **other)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    config = config_file(udp, "connect-timeout 3", host="vpn.example")
    async with Machine(vpn_machine()) as machine, OpenVpnTunnel(machine, config, ME) as vpn:
        with trio.fail_after(60):
            await vpn.wait_connected()


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


# --- what would end a tunnel that nobody has ended -------------------------------------------


async def test_a_server_that_wants_it_ended_by_its_silence_is_connected_to_anew(
    udp: VpnServer,
) -> None:
    """A pushed `ping-exit` is left out; OpenVPN's own two minutes stay."""
    udp.stop()
    udp.keepalive = ("--ping", "1", "--push", "ping 1", "--push", "ping-exit 3")
    udp.start()
    async with tunnel(udp) as (_, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        udp.kill()
        with trio.move_on_after(10):
            await vpn.wait_ended()
        assert vpn.status.state is VpnState.CONNECTED, "it has not found out yet"


@pytest.mark.slow
async def test_a_configuration_that_wants_it_ended_by_silence_connects_anew(
    udp: VpnServer,
) -> None:
    udp.stop()
    udp.keepalive = ("--ping", "1", "--push", "ping 1")
    udp.start()
    async with tunnel(udp, "ping-exit 4") as (_, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        udp.kill()
        await until(vpn, VpnState.RECONNECTING, VpnState.FAILED)
        assert vpn.status.reason is VpnReason.SERVER_UNREACHABLE
        udp.start()
        await until(vpn, VpnState.CONNECTED, VpnState.FAILED)
        assert vpn.status.connects == 2


@pytest.mark.parametrize(
    ("pushed", "reason"),
    [("inactive 3 100000", VpnReason.IDLE), ("session-timeout 3", VpnReason.SERVER_ENDED)],
)
async def test_what_the_server_ends_has_its_name(
    udp: VpnServer, pushed: str, reason: VpnReason
) -> None:
    udp.stop()
    udp.extra = ("--push", pushed)
    udp.start()
    async with tunnel(udp) as (_, vpn):
        with trio.fail_after(60):
            await vpn.wait_connected()
        with trio.fail_after(30):
            status = await vpn.wait_ended()
        assert (status.state, status.reason) == (VpnState.FAILED, reason)
