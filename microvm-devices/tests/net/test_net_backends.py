"""The net backends' plugins, and the two that need nothing of the host."""

from collections.abc import Callable

import pytest
import trio
import trio.lowlevel

from microvm.errors import ConfigError
from microvm.plugins import NetBackendFactory
from microvm_devices.net.device import NetDevice
from microvm_devices.net.loopback import plugin as loopback
from microvm_devices.net.loopback.link import MAX_FRAMES, LoopbackLink
from microvm_devices.net.null import plugin as null
from microvm_devices.net.passt import plugin as passt
from microvm_devices.net.passt.name_servers import HostNameServers
from microvm_devices.net.passt.options import PasstOptions, command, read_options
from microvm_devices.net.socket import plugin as socket
from microvm_devices.net.tap import plugin as tap
from microvm_devices.net.testing import ethernet, running, settings

Register = Callable[[], NetBackendFactory]


@pytest.mark.parametrize(
    ("plugin", "name", "syntax"),
    [
        (loopback, "loopback", "loopback"),
        (null, "null", "null"),
        (passt, "passt", "passt[:dns=ADDRESS,tcp=PORT[:GUESTPORT],udp=...,host]"),
        (socket, "socket", "socket:[dgram:]PATH"),
        (tap, "tap", "tap:NAME"),
    ],
)
def test_each_says_how_it_is_given(plugin: object, name: str, syntax: str) -> None:
    factory = plugin.microvm_register_net_backend()  # type: ignore[attr-defined]
    assert (factory.name, factory.syntax) == (name, syntax)


@pytest.mark.parametrize("plugin", [null, loopback])
def test_an_option_is_refused_where_there_is_none(plugin: object) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create({"speed": 1})  # type: ignore[attr-defined]
    assert [problem.where for problem in caught.value.problems] == ["speed"]


async def test_null_takes_everything_and_gives_nothing() -> None:
    device = NetDevice(null.create({}), settings())
    async with running(device) as driver:
        driver.offer(2048)
        for _ in range(100):
            driver.send(ethernet())
        await driver.tx.wait_used(100)
        assert driver.rx.used() == []
    assert device.counters()["sent_frames"] == 100


async def test_loopback_gives_back_what_it_takes() -> None:
    device = NetDevice(loopback.create({}), settings())
    async with running(device) as driver:
        driver.offer(*[2048] * 200)
        for index in range(200):
            driver.send(ethernet(b"%d" % index))
            assert (await driver.received())[1] == ethernet(b"%d" % index)


async def test_a_full_loopback_waits_for_its_receiver_and_loses_nothing() -> None:
    link = LoopbackLink()
    frames = [[b"%d" % index] for index in range(MAX_FRAMES + 10)]
    assert link.send(frames) == MAX_FRAMES
    got = []
    buffer = bytearray(10)

    def receive() -> None:
        length = link.receive([memoryview(buffer)])
        assert length is not None
        got.append(bytes(buffer[:length]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.wait_writable)
        await trio.lowlevel.checkpoint()
        receive()
    assert link.send(frames[MAX_FRAMES:]) == 1
    while len(got) <= MAX_FRAMES:
        receive()
    assert got == [frame[0] for frame in frames[: MAX_FRAMES + 1]]
    assert link.receive([memoryview(buffer)]) is None


# --- passt's options and command line ------------------------------------------------------------


def test_by_default_the_guest_reaches_no_program_of_the_host_and_none_reaches_it() -> None:
    words = command("passt", PasstOptions(), HostNameServers(), fd=7)
    assert words == [
        "passt",
        *("--foreground", "--quiet", "--fd", "7", "--mtu", "65520", "--no-map-gw"),
        *("--tcp-ports", "none", "--udp-ports", "none"),
    ]


def test_everything_asked_for_is_in_passts_words() -> None:
    options = read_options(
        {
            "tcp_ports": [8080, "8443:443", "0.0.0.0/80", "::1/81:8081"],
            "udp_ports": ("53:5353",),
            "dns": ["192.0.2.53", "2001:db8::53"],
            "host_access": True,
            "mtu": 1500,
        }
    )
    line = " ".join(command("passt", options, HostNameServers(), fd=3))
    for part in (
        "--mtu 1500",
        "--tcp-ports 127.0.0.1/8080:8080 --tcp-ports 127.0.0.1/8443:443",
        "--tcp-ports 0.0.0.0/80:80 --tcp-ports ::1/81:8081",
        "--udp-ports 127.0.0.1/53:5353",
        "--dns 192.0.2.53 --dns 2001:db8::53",
    ):
        assert part in line
    assert "--no-map-gw" not in line


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"tcp_ports": 8080}, "tcp_ports"),
        ({"tcp_ports": ["0"]}, "tcp_ports"),
        ({"tcp_ports": ["65536"]}, "tcp_ports"),
        ({"tcp_ports": ["80:"]}, "tcp_ports"),
        ({"tcp_ports": ["all"]}, "tcp_ports"),
        ({"tcp_ports": [True]}, "tcp_ports"),
        ({"udp_ports": ["80 --fd 3"]}, "udp_ports"),
        ({"udp_ports": ["1.2.3/80"]}, "udp_ports"),
        ({"udp_ports": [-1]}, "udp_ports"),
        ({"dns": ["resolver"]}, "dns"),
        ({"dns": "192.0.2.53"}, "dns"),
        ({"dns": [f"192.0.2.{last}" for last in range(4)]}, "dns"),
        ({"dns": [f"2001:db8::{last}" for last in range(4)]}, "dns"),
        ({"host_access": 1}, "host_access"),
        ({"mtu": 1279}, "mtu"),
        ({"ports": []}, "ports"),
    ],
)
def test_a_wrong_option_is_told(options: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(options)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_without_passt_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="apt-get install passt"):
        passt.create({})
