"""The card as a transport sees it: what it offers, its configuration space, its pairs of queues."""

import struct

import pytest
import trio
import trio.testing

from microvm.abc import Offload
from microvm.errors import ConfigError
from microvm.plugins import DeviceFactory
from microvm_devices.net import features as f
from microvm_devices.net import plugin
from microvm_devices.net.device import NetDevice
from microvm_devices.net.features import Negotiated, offered
from microvm_devices.net.null.link import NullBackend
from microvm_devices.net.testing import (
    MAC,
    PEER,
    ScriptedNet,
    ethernet,
    running,
    settings,
)

ALWAYS = f.F_MAC | f.F_MTU | f.F_STATUS | f.F_MRG_RXBUF | f.F_CTRL_VQ | f.F_CTRL_RX
ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6
BUFFER = 12 + 1518


# --- what it offers ------------------------------------------------------------------------------


def test_what_is_offered_is_what_the_backend_can_do() -> None:
    assert offered(Offload(0), pairs=1, fixed_mac=True) == ALWAYS
    assert offered(Offload(0), pairs=2, fixed_mac=False) == ALWAYS | f.F_MQ | f.F_CTRL_MAC_ADDR
    checksums = offered(Offload.CSUM, pairs=1, fixed_mac=True)
    assert checksums == ALWAYS | f.F_CSUM | f.F_GUEST_CSUM
    everything = offered(ALL, pairs=1, fixed_mac=True)
    assert everything == checksums | f.F_HOST_TSO4 | f.F_GUEST_TSO4 | f.F_HOST_TSO6 | f.F_GUEST_TSO6


def test_segmentation_is_worth_nothing_without_checksums() -> None:
    """5.1.3.1 Feature bit requirements."""
    assert offered(Offload.TSO4, pairs=1, fixed_mac=True) == ALWAYS
    taken = Negotiated.of(f.F_HOST_TSO4 | f.F_GUEST_TSO6 | f.F_CTRL_VQ)
    assert taken.from_driver == taken.to_driver == Offload(0)


def test_several_queues_need_a_control_queue() -> None:
    assert not Negotiated.of(f.F_MQ).multiqueue
    assert Negotiated.of(f.F_MQ | f.F_CTRL_VQ).multiqueue


@pytest.mark.parametrize("queues", [1, 3])
def test_the_queues_are_pairs_and_one_for_control(queues: int) -> None:
    device = NetDevice(ScriptedNet(), settings(queues=queues))
    assert list(device.queue_max_sizes) == [256] * (2 * queues) + [64]
    assert device.device_id == 1


def test_the_configuration_space_may_be_read_in_any_piece_and_beyond_its_end() -> None:
    device = NetDevice(ScriptedNet(), settings(queues=3, mtu=9000))
    whole = MAC + struct.pack("<HHH", 1, 3, 9000)
    for start in range(20):
        for length in range(20):
            expected = whole[start : start + length].ljust(length, b"\0")
            assert device.read_config(start, length) == expected
    assert device.read_config(-1, 4) == bytes(4)
    device.write_config(0, PEER)
    assert device.read_config(0, 6) == MAC


# --- its plugin ----------------------------------------------------------------------------------


def test_the_plugin_takes_a_nets_options() -> None:
    factory = plugin.microvm_register_device()
    assert isinstance(factory, DeviceFactory)
    made = factory.create(
        {"backend": NullBackend(), "mac": "02:00:00:00:00:01", "mtu": 1400, "queues": 2}
    )
    assert made.read_config(0, 12) == MAC + struct.pack("<HHH", 1, 2, 1400)
    assert not made.features & f.F_CTRL_MAC_ADDR


def test_without_an_address_each_device_has_its_own_and_it_is_a_stations() -> None:
    macs = {plugin.create({"backend": NullBackend()}).read_config(0, 6) for _ in range(100)}
    assert len(macs) == 100
    assert all(mac[0] & 3 == 2 for mac in macs)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"backend": NullBackend(), "speed": 1}, "speed"),
        ({"backend": NullBackend(), "mac": "x"}, "mac"),
        ({"backend": NullBackend(), "queues": 0}, "queues"),
    ],
)
def test_a_wrong_option_is_told_by_its_name(options: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create(options)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_a_backend_is_a_backend() -> None:
    with pytest.raises(ConfigError, match="must be a NetBackend"):
        plugin.create({"backend": "null"})


# --- its life ------------------------------------------------------------------------------------


async def test_the_links_are_open_as_long_as_the_device_lives() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings())
    assert not net.held_open
    async with device.lifespan():
        assert net.held_open
    assert not net.held_open


async def test_a_driver_that_begins_anew_finds_the_card_anew() -> None:
    net = ScriptedNet()
    device = NetDevice(net, settings())
    for index in range(3):
        async with running(device, f.F_CTRL_VQ) as driver:
            assert device.read_config(0, 6) == MAC
            driver.send(ethernet(b"%d" % index))
            assert await net.link.sent() == ethernet(b"%d" % index)
            driver.offer(BUFFER)
            net.link.give(ethernet(b"back", source=PEER, to=MAC))
            await driver.received()
            assert await driver.command(1, 1, PEER) == 0
            assert device.read_config(0, 6) == PEER


# --- several pairs -------------------------------------------------------------------------------


def frame_for(index: int) -> bytes:
    return ethernet(b"%d" % index, source=PEER, to=MAC)


async def test_one_pair_is_in_use_until_the_driver_asks_for_more() -> None:
    net = ScriptedNet(links=2)
    device = NetDevice(net, settings(queues=2))
    async with running(device, f.F_CTRL_VQ | f.F_MQ, pairs=2) as driver:
        for queue in range(2):
            driver.offer(*[BUFFER] * 8, queue=queue)
        for index, link in enumerate(net.links):
            link.give(frame_for(index))
        got = {(await driver.received())[1] for _ in range(2)}
        assert got == {frame_for(0), frame_for(1)}
        assert driver.receive[1].used() == []
        assert await driver.command(4, 0, b"\2\0") == 0
        for index, link in enumerate(net.links):
            link.give(frame_for(index))
            assert (await driver.received(queue=index))[1] == frame_for(index)
        assert await driver.command(4, 0, b"\1\0") == 0
        net.links[1].give(frame_for(1))
        assert (await driver.received())[1] == frame_for(1)


async def test_each_transmit_queue_sends_by_a_link_of_its_own_where_there_is_one() -> None:
    net = ScriptedNet(links=2)
    async with running(NetDevice(net, settings(queues=2)), f.F_CTRL_VQ | f.F_MQ, pairs=2) as driver:
        for index, queue in enumerate(driver.transmit):
            queue.add([bytes(12) + ethernet(b"%d" % index)])
            queue.kick()
            assert await net.links[index].sent() == ethernet(b"%d" % index)


async def test_several_queues_share_a_link_and_wait_for_it_together() -> None:
    net = ScriptedNet()
    net.link.make_room(0)
    async with running(NetDevice(net, settings(queues=3)), f.F_CTRL_VQ | f.F_MQ, pairs=3) as driver:
        for queue in driver.transmit:
            queue.add([bytes(12) + ethernet()])
            queue.kick()
        await trio.testing.wait_all_tasks_blocked()
        net.link.make_room(None)
        for _ in range(3):
            assert await net.link.sent() == ethernet()


async def test_where_a_vmm_keeps_control_to_itself_all_pairs_it_gives_are_in_use() -> None:
    """As QEMU does with vhost-user: no CTRL_VQ is negotiated with us."""
    net = ScriptedNet(links=2)
    async with running(NetDevice(net, settings(queues=2)), f.F_MQ, pairs=2) as driver:
        driver.offer(BUFFER, queue=1)
        net.links[1].give(frame_for(1))
        assert (await driver.received(queue=1))[1] == frame_for(1)


async def test_several_links_fill_one_queue_and_wait_for_its_buffers_together() -> None:
    net = ScriptedNet(links=4)
    async with running(NetDevice(net, settings(queues=4)), f.F_CTRL_VQ | f.F_MQ, pairs=4) as driver:
        for index, link in enumerate(net.links):
            link.give(frame_for(index), frame_for(index))
        await trio.testing.wait_all_tasks_blocked()
        got = []
        for _ in range(8):
            driver.offer(BUFFER)
            with trio.fail_after(5):
                got.append((await driver.received())[1])
        assert sorted(got) == sorted(frame_for(index) for index in (0, 0, 1, 1, 2, 2, 3, 3))


async def test_several_links_without_buffers_wait_and_do_not_spin() -> None:
    """Found by `test_net_any_guest`: two that waited for each other took turns at nothing."""
    net = ScriptedNet(links=2)
    async with running(NetDevice(net, settings(queues=2)), f.F_CTRL_VQ) as driver:
        driver.offer(BUFFER)
        net.links[0].give(frame_for(0))
        net.links[1].give(frame_for(1))
        await driver.received()
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked()
