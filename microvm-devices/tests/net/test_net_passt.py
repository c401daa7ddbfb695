"""passt itself, and a guest played by hand at the other end of a card."""

import os
import shutil
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from microvm.errors import BackendError
from microvm.testing.census import Census
from microvm_devices.net.device import NetDevice
from microvm_devices.net.passt import plugin
from microvm_devices.net.passt.backend import SEND_BUFFER_BYTES, PasstBackend
from microvm_devices.net.passt.options import PasstOptions
from microvm_devices.net.testing import MAC, NetDriver, ethernet, running, settings

pytestmark = pytest.mark.skipif(
    shutil.which("passt") is None or not Path("/proc/net/route").exists(),
    reason="passt is not installed",
)
IP_FOR_THE_GUEST = "10.9.8.7"
BROADCAST = b"\xff" * 6


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    before = Census.take()
    yield
    assert Census.take() == before


@asynccontextmanager
async def guest(**options: object) -> AsyncIterator[tuple[NetDevice, NetDriver]]:
    device = NetDevice(plugin.create(options), settings(mtu=1500))
    async with running(device) as driver:
        driver.offer(*[2048] * 100)
        yield device, driver


def arp_request(target: str) -> bytes:
    """Who has `target`? RFC 826."""
    body = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + MAC + socket.inet_aton(IP_FOR_THE_GUEST)
    body += bytes(6) + socket.inet_aton(target)
    return BROADCAST + MAC + b"\x08\x06" + body


async def received(driver: NetDriver, ethertype: int) -> bytes:
    with trio.fail_after(10):
        while True:
            frame = (await driver.received())[1]
            if struct.unpack_from(">H", frame, 12) == (ethertype,):
                return frame


def most_to_send() -> int:
    return int(Path("/proc/sys/net/core/wmem_max").read_text())


def children() -> list[int]:
    return list(Census.take().children)


async def test_somebody_answers_and_is_gone_with_the_device() -> None:
    async with guest() as (device, driver):
        (process,) = children()
        driver.send(arp_request("10.9.8.1"))
        answer = await received(driver, 0x806)
        assert answer[:6] == MAC
        assert answer[20:22] == b"\0\2"
        assert device.counters()["received_frames"] >= 1
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


async def test_started_by_root_it_is_not_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("not run by root")
    async with guest() as (_, driver):
        driver.send(arp_request("10.9.8.1"))
        await received(driver, 0x806)
        (process,) = children()
        assert os.stat(f"/proc/{process}").st_uid != 0


async def test_a_passt_that_dies_takes_the_carrier_and_not_the_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with guest() as (device, driver):
        driver.send(arp_request("10.9.8.1"))
        await received(driver, 0x806)
        (process,) = children()
        os.kill(process, signal.SIGKILL)
        with trio.fail_after(10):
            while not driver.config_changes:  # noqa: ASYNC110 - counted by the driver double
                await trio.sleep(0.01)
        assert device.read_config(6, 2) == b"\0\0"
        driver.send(ethernet())
        await driver.tx.wait_used(2)
    assert "passt ended with code -9" in caplog.text


async def test_a_passt_that_dies_under_a_guest_that_sends_is_told_with_how_it_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is the sender that notices, where nothing is to be received for want of buffers."""
    device = NetDevice(plugin.create({}), settings(mtu=1500))
    async with running(device) as driver:
        driver.offer(2048)
        driver.send(arp_request("10.9.8.1"))
        await received(driver, 0x806)
        (process,) = children()
        os.kill(process, signal.SIGKILL)
        with trio.fail_after(10):
            while not driver.config_changes:
                driver.send(ethernet())
                await trio.sleep(0.01)
        await driver.tx.wait_used(2)
    assert device.counters()["sent_dropped"] >= 1
    assert "passt ended with code -9" in caplog.text


async def test_a_passt_that_never_was_up_is_told_in_its_own_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match=r"(?s)can't be made.*passt ended.*forwarded ports"):
            async with plugin.create({"tcp_ports": [port]}).lifespan(1):
                await trio.sleep(20)


PASST_THAT_SAYS_ITS_ROOM = """#!/usr/bin/env python3
import socket, sys
words = sys.argv
sock = socket.socket(fileno=int(words[words.index("--fd") + 1]))
sys.exit(f"room for {sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)} bytes")
"""


async def test_passt_may_send_as_much_at_once_as_the_host_lets_it(tmp_path: Path) -> None:
    """What has no room is lost, and a connection that lost its first bytes stands for 2 s."""
    program = tmp_path / "passt"
    program.write_text(PASST_THAT_SAYS_ITS_ROOM)
    program.chmod(0o755)
    room = 2 * min(SEND_BUFFER_BYTES, most_to_send())  # socket(7): twice what was asked for
    with pytest.raises(BackendError, match=f"room for {room} bytes"):
        async with PasstBackend(PasstOptions(), str(program)).lifespan(1):
            await trio.sleep(20)


async def test_a_program_that_can_not_be_started_is_told(tmp_path: Path) -> None:
    backend = PasstBackend(PasstOptions(), str(tmp_path / "passt"))
    with pytest.raises(BackendError, match="can't be started"):
        async with backend.lifespan(1):
            pytest.fail("it was started")


async def test_it_can_be_cancelled_at_any_time() -> None:
    for delay in (0, 0.001, 0.01, 0.05):
        with trio.move_on_after(delay):
            async with plugin.create({}).lifespan(1):
                await trio.sleep_forever()
