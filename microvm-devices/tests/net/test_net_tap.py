"""TAP: a card at one end, at the other the kernel of a network namespace."""

import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from microvm.errors import ConfigError, NetLinkDown
from microvm.testing.namespace import NoNamespace, ip, network_namespace, tap_interface
from microvm_devices.net.device import NetDevice
from microvm_devices.net.features import F_CSUM, F_CTRL_VQ, F_GUEST_CSUM, F_MQ, F_MRG_RXBUF
from microvm_devices.net.packet import HEADER, PLAIN
from microvm_devices.net.tap import _abi, plugin
from microvm_devices.net.testing import MAC, NetDriver, running, settings

NAME = "mvtest0"
HOST, GUEST = "10.77.0.1", "10.77.0.2"
NEEDS_CSUM = 1
UDP_AT = 14 + 20


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    try:
        with network_namespace():
            yield
    except NoNamespace as error:
        pytest.skip(str(error))


@pytest.fixture
def tap() -> Iterator[str]:
    """An interface that believes the guest to be at its other end."""
    with tap_interface(NAME, f"{HOST}/24"):
        ip("neigh", "add", GUEST, "lladdr", MAC.hex(":"), "dev", NAME)
        yield NAME


def card(**options: object) -> NetDevice:
    return NetDevice(plugin.create(options), settings())


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(source: str, target: str, length: int) -> bytes:
    """The pseudo header of UDP's checksum (RFC 768)."""
    return socket.inet_aton(source) + socket.inet_aton(target) + struct.pack(">HH", 17, length)


def datagram(payload: bytes, port: int, *, to: bytes, complete: bool) -> bytes:
    """A UDP datagram from the guest; its payload of even length."""
    length = 8 + len(payload)
    sums = pseudo(GUEST, HOST, length)
    head = struct.pack(">HHHH", 4000, port, length, 0)
    # What is left undone is the sum of all but the pseudo header, which stands in the field.
    value = checksum(sums + head + payload) if complete else checksum(sums) ^ 0xFFFF
    udp = head[:6] + struct.pack(">H", value) + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0)
    header += socket.inet_aton(GUEST) + socket.inet_aton(HOST)
    header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return to + MAC + b"\x08\x00" + header + udp


def address_of(name: str) -> bytes:
    words = ["ip", "-o", "link", "show", name]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return bytes.fromhex(text.partition("link/ether ")[2].split()[0].replace(":", ""))


async def has_carrier() -> None:
    """The kernel sends by an interface when it has noticed that somebody opened it."""
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(10):
        while b"state UP" not in await shown(NAME):  # noqa: ASYNC110 - the kernel sets no Event
            await trio.sleep(0.01)


async def shown(name: str) -> bytes:
    words = ["ip", "-o", "link", "show", name]
    return subprocess.run(words, check=True, capture_output=True).stdout  # noqa: ASYNC221


async def next_datagram(driver: NetDriver) -> tuple[tuple[int, ...], bytes]:
    """The next UDP frame for the guest; the kernel has other things to say too."""
    while True:
        header, frame = await driver.received()
        if frame[12:14] == b"\x08\x00" and frame[23] == 17:
            return header, frame


@pytest.mark.parametrize("complete", [True, False])
async def test_what_the_guest_sends_arrives_its_checksum_done_or_left_undone(
    tap: str, complete: bool
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        port = server.getsockname()[1]
        async with running(card(name=tap), F_CSUM) as driver:
            frame = datagram(b"hello!", port, to=address_of(tap), complete=complete)
            flags = 0 if complete else NEEDS_CSUM
            driver.send(frame, HEADER.pack(flags, 0, 0, 0, UDP_AT, 6, 0))
            await driver.tx.wait_used()
            # Not in a thread: trio keeps them, and this one would stay in the namespace.
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(server)
            assert server.recvfrom(100) == (b"hello!", (GUEST, 4000))


@pytest.mark.parametrize("features", [0, F_MRG_RXBUF])
async def test_without_guest_csum_what_arrives_is_complete(tap: str, features: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        async with running(card(name=tap), features) as driver:
            driver.offer(*[2048] * 50)
            await has_carrier()
            client.sendto(bytes(1000), (GUEST, 9))
            header, frame = await next_datagram(driver)
    assert header == (0, 0, 0, 0, 0, 0, 1)
    udp = frame[UDP_AT:]
    assert len(udp) == 1008
    assert checksum(pseudo(HOST, GUEST, len(udp)) + udp) == 0


async def test_with_guest_csum_the_checksum_is_left_to_the_guest(tap: str) -> None:
    features = F_CSUM | F_GUEST_CSUM | F_MRG_RXBUF
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        async with running(card(name=tap), features) as driver:
            driver.offer(*[2048] * 50)
            await has_carrier()
            client.sendto(bytes(1000), (GUEST, 9))
            header, _ = await next_datagram(driver)
    flags, _, _, _, start, offset, buffers = header
    assert (flags, start, offset, buffers) == (NEEDS_CSUM, UDP_AT, 6, 1)


async def test_what_the_kernel_makes_nothing_of_is_lost_and_the_next_arrives(tap: str) -> None:
    device = card(name=tap)
    async with running(device) as driver:
        ip("link", "set", tap, "down")
        driver.send(bytes(64), PLAIN)
        await driver.tx.wait_used()
        ip("link", "set", tap, "up")
        driver.send(bytes(64), PLAIN)
        await driver.tx.wait_used()
    assert device.counters()["sent_frames"] == 2


async def test_an_interface_that_is_deleted_is_down() -> None:
    with tap_interface(NAME, f"{HOST}/24"):
        backend = plugin.create({"name": NAME})
        async with backend.lifespan(1) as (link,):
            ip("link", "del", NAME)
            with pytest.raises(NetLinkDown, match="gone"):
                link.receive([memoryview(bytearray(2000))])
            with pytest.raises(NetLinkDown, match="gone"):
                link.send([[PLAIN, bytes(64)]])


async def test_a_driver_that_begins_anew_on_a_deleted_interface_finds_it_down() -> None:
    with tap_interface(NAME, f"{HOST}/24"):
        device = card(name=NAME)
        async with device.lifespan():
            ip("link", "del", NAME)
            driver = NetDriver()
            driver.offer(2048)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(driver.drive, device)
                with trio.fail_after(5):
                    while not driver.config_changes:  # noqa: ASYNC110 - counted by the double
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            assert device.read_config(6, 2) == b"\0\0"


async def test_one_that_was_not_there_is_made_and_goes_away_again() -> None:
    async with plugin.create({"name": "mvtest9"}).lifespan(1):
        assert "mvtest9" in [name for _, name in socket.if_nameindex()]
    assert "mvtest9" not in [name for _, name in socket.if_nameindex()]


async def test_several_queues_are_several_descriptors() -> None:
    with tap_interface(NAME, f"{HOST}/24", several=True):
        device = NetDevice(plugin.create({"name": NAME}), settings(queues=3))
        async with running(device, F_CTRL_VQ | F_MQ, pairs=3) as driver:
            assert await driver.command(4, 0, b"\3\0") == 0
            for queue in driver.transmit:
                queue.add([PLAIN + bytes(64)])
                queue.kick()
                await queue.wait_used()
        async with plugin.create({"name": NAME}).lifespan(1) as links:
            assert len(links) == 1


async def test_a_descriptor_of_the_callers_is_used_and_left_open(tap: str) -> None:
    fd = os.open(_abi.CLONE_DEVICE, os.O_RDWR)
    try:
        flags = _abi.IFF_TAP | _abi.IFF_NO_PI
        _abi.set_interface(fd, tap, flags | _abi.IFF_VNET_HDR)
        async with running(card(fds=[fd])) as driver:
            driver.send(bytes(64))
            await driver.tx.wait_used()
        assert _abi.interface_flags(fd) & flags == flags
    finally:
        os.close(fd)


async def test_what_is_no_tap_or_taken_is_told_with_what_to_do(tap: str) -> None:
    async def refused(words: str, queues: int = 1, **options: object) -> None:
        with pytest.raises(ConfigError, match=words):
            async with plugin.create(options).lifespan(queues):
                pytest.fail("it was opened")

    await refused("lo is no TAP interface", name="lo")
    await refused("no TAP interface with 2 queues.*\n.*multi_queue", name=tap, queues=2)
    with socket.socket() as sock:
        await refused("is no TAP interface", fds=[sock.fileno()])
    async with plugin.create({"name": tap}).lifespan(1):
        await refused("is in use", name=tap)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "name"),
        ({"name": "x" * 16}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": "tap%d"}, "name"),
        ({"name": "tap0", "fds": [3]}, "name"),
        ({"fds": ["3"]}, "fds"),
        ({"fds": 3}, "fds"),
        ({"fds": "3"}, "fds"),
        ({"interface": "tap0"}, "interface"),
    ],
)
def test_a_wrong_option_is_told(options: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create(options)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_the_name_stands_behind_the_colon() -> None:
    assert plugin.parse_cli("tap0") == {"name": "tap0"}
    with pytest.raises(ConfigError, match="--net tap:NAME"):
        plugin.parse_cli("")
