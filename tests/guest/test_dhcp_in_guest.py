"""The agent's DHCP against a server that we play: short leases, refusals, links to nowhere."""

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from tests.guest.net_peer import shell

from microvm import Machine, MachineConfig, NetConfig

pytestmark = pytest.mark.linux_guest

DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
GUEST, SERVER, NAME_SERVER = "10.7.0.2", "10.7.0.1", "10.7.0.53"
COOKIE = bytes([99, 130, 83, 99])
BROADCAST = b"\xff" * 6
SERVERS_MAC = bytes.fromhex("02000000000f")


def addresses(*texts: str) -> bytes:
    return b"".join(map(socket.inet_aton, texts))


def option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def answer(kind: int, asked: bytes, lease_s: int) -> bytes:
    """A frame in answer to a client's message (RFC 2131, 2)."""
    message = b"\2" + asked[1:10] + b"\x80\0" + addresses("0.0.0.0", GUEST, SERVER, "0.0.0.0")
    message += asked[28:44] + bytes(192) + COOKIE
    message += option(53, bytes([kind])) + option(54, addresses(SERVER))
    message += option(1, addresses("255.255.255.0")) + option(3, addresses(SERVER))
    message += option(6, addresses(NAME_SERVER)) + option(51, struct.pack(">I", lease_s)) + b"\xff"
    udp = struct.pack(">HHHH", 67, 68, 8 + len(message), 0) + message
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    # The agent asks the packet socket, which comes before the kernel looks at the header's sum.
    return BROADCAST + SERVERS_MAC + b"\x08\0" + ip + addresses(SERVER, "255.255.255.255") + udp


@attrs.define
class DhcpServer:
    """Gives out one address, for `lease_s`."""

    lease_s: int
    heard: list[int] = attrs.Factory(list)
    """Types of the messages that came."""
    verdict: int | None = ACK
    """To who asks for the address; None is silence."""

    def reply(self, frame: bytes) -> bytes | None:
        """To a frame of the guest's."""
        message = frame[14 + 20 + 8 :]
        if frame[12:14] != b"\x08\0" or frame[34:38] != struct.pack(">HH", 68, 67):
            return None
        kind = message[242]
        self.heard.append(kind)
        says = OFFER if kind == DISCOVER else self.verdict
        return None if says is None else answer(says, message, self.lease_s)

    async def serve(self, listener: trio.SocketListener) -> None:
        """One machine, in QEMU's framing."""
        stream = await listener.accept()
        data = bytearray()
        async with stream:
            async for part in stream:
                data += part
                while len(data) >= 4 and len(data) >= 4 + (size := int.from_bytes(data[:4])):
                    reply = self.reply(bytes(data[4 : 4 + size]))
                    del data[: 4 + size]
                    if reply is not None:
                        await stream.send_all(len(reply).to_bytes(4) + reply)


@asynccontextmanager
async def guest_of(server: DhcpServer, folder: Path) -> AsyncIterator[Machine]:
    """A machine on a network where there is nobody but the server."""
    path = folder / "dhcp"
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(os.fspath(path))
        sock.listen()
        net = NetConfig(backend="socket", options={"path": path})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve, trio.SocketListener(sock))
            async with Machine(MachineConfig(nets=(net,))) as machine:
                yield machine
            nursery.cancel_scope.cancel()


async def test_an_address_a_way_and_a_name_server_are_as_the_server_says(tmp_path: Path) -> None:
    server = DhcpServer(lease_s=3600)
    async with guest_of(server, tmp_path) as machine:
        text = await shell(machine, "ip -4 addr show dev eth0; ip route; cat /etc/resolv.conf")
    assert f"inet {GUEST}/24" in text
    assert f"default via {SERVER} dev eth0" in text
    assert f"nameserver {NAME_SERVER}" in text
    assert server.heard[-1] == REQUEST


async def test_a_lease_for_no_time_at_all_is_not_renewed_without_a_pause(tmp_path: Path) -> None:
    server = DhcpServer(lease_s=0)
    async with guest_of(server, tmp_path) as machine:
        await shell(machine, "true")
        before = len(server.heard)
        await shell(machine, "sleep 3")
        assert len(server.heard) - before <= 4


async def test_name_servers_are_written_through_a_link_whose_target_nobody_has_made(
    tmp_path: Path,
) -> None:
    """As on a disk whose systemd-resolved does not run here."""
    server = DhcpServer(lease_s=2)
    async with guest_of(server, tmp_path) as machine:
        await shell(
            machine,
            "rm /etc/resolv.conf; ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf",
        )
        before = len(server.heard)
        with trio.fail_after(60):
            while len(server.heard) < before + 3:  # noqa: ASYNC110 - a renewal's time is the guest's
                await trio.sleep(0.1)
        assert await shell(machine, "cat /etc/resolv.conf") == f"nameserver {NAME_SERVER}"


SHOWN = "ip -4 addr show dev eth0; ip route; cat /etc/resolv.conf"


@pytest.mark.parametrize("verdict", [None, NAK], ids=["silence", "a refusal"])
async def test_a_lease_that_has_ended_leaves_nothing_and_the_next_is_asked_for(
    verdict: int | None, tmp_path: Path
) -> None:
    """Its address may be somebody else's by now (RFC 2131, 4.4.5)."""
    server = DhcpServer(lease_s=2)
    async with guest_of(server, tmp_path) as machine:
        assert f"inet {GUEST}/24" in await shell(machine, SHOWN)
        server.verdict = verdict
        with trio.fail_after(60):
            while await shell(machine, SHOWN):
                pass
        server.verdict = ACK
        with trio.fail_after(60):
            for had in (
                f"inet {GUEST}/24",
                f"default via {SERVER} dev eth0",
                f"nameserver {NAME_SERVER}",
            ):
                while had not in await shell(machine, SHOWN):
                    pass
