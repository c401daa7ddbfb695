"""The device as a transport, a plugin manager and a program see it."""

import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from microvm.config import VsockConfig
from microvm.errors import ConfigError, GuestGone, GuestRefused
from microvm.plugins import DeviceFactory
from microvm.testing.queue_driver import activation
from microvm_devices.vsock import limits, plugin
from microvm_devices.vsock.device import VsockDevice
from microvm_devices.vsock.packet import HEADER_BYTES, Op
from microvm_devices.vsock.testing import GuestVsock

PORT = 1024


# --- plugin and configuration ----------------------------------------------------------------


def test_the_plugin_offers_the_device() -> None:
    factory = plugin.microvm_register_device()
    assert isinstance(factory, DeviceFactory)
    assert (factory.name, factory.virtio_id) == ("vsock", 19)
    device = factory.create({"guest_cid": 7, "uds_path": None})
    assert device.device_id == 19
    assert device.read_config(0, 8) == (7).to_bytes(8, "little")


def test_the_plugin_is_cheap_to_import() -> None:
    code = "import sys, microvm_devices.vsock.plugin; print('trio' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def test_unknown_options_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        plugin.create({"guest_cid": 3, "cid": 4, "uds": "x"})
    assert [problem.where for problem in caught.value.problems] == ["cid", "uds"]


@pytest.mark.parametrize("cid", [0, 1, 2, -1, 0xFFFF_FFFF, 1 << 32, "3", True, None])
def test_reserved_and_impossible_cids_are_refused(cid: object) -> None:
    with pytest.raises(ConfigError, match="guest_cid"):
        plugin.create({"guest_cid": cid})


def test_a_path_may_be_given_as_text() -> None:
    assert plugin.create({"uds_path": "/tmp/v.sock"}).device_id == 19


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 8, b"\x04\3\2\1\0\0\0\0"),
        (0, 4, b"\x04\3\2\1"),
        (2, 1, b"\2"),
        (6, 4, bytes(4)),
        (8, 4, bytes(4)),
        (0xFFFF_FFFC, 8, bytes(8)),
        (-4, 8, bytes(8)),
        (0, 0, b""),
    ],
)
def test_config_space_holds_the_cid_and_zeros_behind_it(
    offset: int, length: int, expected: bytes
) -> None:
    device = VsockDevice(VsockConfig(guest_cid=0x01020304))
    assert device.read_config(offset, length) == expected
    device.write_config(0, bytes(8))
    assert device.read_config(offset, length) == expected


def test_three_queues_of_a_power_of_two() -> None:
    assert all(size & (size - 1) == 0 for size in VsockDevice(VsockConfig()).queue_max_sizes)
    assert len(VsockDevice(VsockConfig()).queue_max_sizes) == 3


# --- waiting for a driver --------------------------------------------------------------------


async def test_connect_waits_for_the_driver_and_listen_works_before_everything() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    incoming = guest.listen(52)
    async with (
        device.listen(PORT) as listener,
        device.lifespan(),
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def connect() -> None:
            async with await device.connect(52) as stream:
                await stream.send_all(b"patience")

        await trio.testing.wait_all_tasks_blocked()
        assert device.statistics.connections == 0
        async with guest.running(device):
            nursery.start_soon(guest.serve)
            assert await (await incoming.receive()).receive_some() == b"patience"
            far = await guest.connect(PORT)
            await (await listener.accept()).aclose()
            assert await far.receive_some() == b""
            nursery.cancel_scope.cancel()


async def test_refused_connections_say_what_to_do() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        with pytest.raises(GuestRefused, match=r"port 7.*\n.*listen"):
            await device.connect(7)
        nursery.cancel_scope.cancel()


async def test_cancelling_connect_leaves_nothing_and_a_late_answer_gets_rst() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with guest.attached(device):
        with trio.move_on_after(0.01) as scope:
            await device.connect(52)
        assert scope.cancelled_caught
        assert device.statistics.connections == 0
        (request,) = await guest.settled()
        assert request.op == Op.REQUEST
        guest.send(Op.RESPONSE, 52, request.header.src_port)
        assert [packet.op for packet in await guest.settled()] == [Op.RST]


async def test_host_ports_are_taken_in_turn_from_two_to_the_thirtieth() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with guest.attached(device):
        seen = []
        for _ in range(3):
            with trio.move_on_after(0.001):
                await device.connect(52)
            seen += [packet.header.src_port for packet in await guest.settled()]
        first = limits.FIRST_HOST_PORT
        assert seen == [first, first + 1, first + 2]
        device._muxer._table._next_host_port = limits.LAST_HOST_PORT
        for _ in range(2):
            with trio.move_on_after(0.001):
                await device.connect(52)
        ports = [packet.header.src_port for packet in await guest.settled()]
        assert ports == [limits.LAST_HOST_PORT, first]


@pytest.mark.parametrize("port", [-1, 1 << 32])
async def test_impossible_ports_are_refused(port: int) -> None:
    device = VsockDevice(VsockConfig())
    with pytest.raises(ConfigError):
        await device.connect(port)
    with pytest.raises(ConfigError):
        device.listen(port)


# --- listeners -------------------------------------------------------------------------------


async def test_a_port_has_one_listener_at_a_time() -> None:
    device = VsockDevice(VsockConfig())
    async with device.listen(PORT):
        with pytest.raises(ConfigError, match="1024"):
            device.listen(PORT)
    async with device.listen(PORT) as listener:
        await listener.aclose()
        async with device.listen(PORT):
            await listener.aclose()
            with pytest.raises(ConfigError):
                device.listen(PORT)
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def test_closing_a_listener_ends_connections_that_nobody_accepted() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with guest.attached(device), trio.open_nursery() as nursery:
        nursery.start_soon(guest.serve)
        async with device.listen(PORT):
            far = await guest.connect(PORT)
        assert await far.receive_all() == b""
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(PORT)
        nursery.cancel_scope.cancel()


# --- reset and end ---------------------------------------------------------------------------


async def test_a_reset_closes_streams_and_leaves_listeners_and_waiting_programs() -> None:
    device = VsockDevice(VsockConfig())
    async with device.listen(PORT) as listener, device.lifespan(), trio.open_nursery() as nursery:
        first = GuestVsock()
        async with first.running(device), trio.open_nursery() as inner:
            inner.start_soon(first.serve)
            await first.connect(PORT)
            stream = await listener.accept()
            inner.cancel_scope.cancel()
        assert device.statistics.connections == 1  # it might have been a pause
        device.reset()
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert device.statistics.connections == 0

        second = GuestVsock()
        silent = trio.Event()

        @nursery.start_soon
        async def connect() -> None:
            # Asked of one driver, which is reset before it answers, and answered by the next.
            async with await device.connect(52) as stream:
                await stream.send_all(b"still here")

        async with GuestVsock().running(device):
            await trio.testing.wait_all_tasks_blocked()
            silent.set()
        incoming = second.listen(52)
        async with second.running(device):
            nursery.start_soon(second.serve)
            assert await (await incoming.receive()).receive_some() == b"still here"
            far = await second.connect(PORT)
            await (await listener.accept()).aclose()
            assert await far.receive_some() == b""
            nursery.cancel_scope.cancel()


async def test_a_pause_keeps_streams_and_what_either_side_sent_meanwhile() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with device.lifespan(), device.listen(PORT) as listener:
        async with guest.running(device):
            guest.send(Op.REQUEST, 1, PORT, buf_alloc=1 << 20)
            await guest.settled()
            stream = await listener.accept()
            # Fills RX buffers exactly, so that the device holds one more when it is paused.
            await stream.send_all(bytes(guest.rx_buffer_bytes - HEADER_BYTES))
            await guest.settled()
        async with stream:
            await stream.send_all(b"while paused")
            guest.send(Op.RW, 1, PORT, b"just before", buf_alloc=1 << 20)
            await trio.testing.wait_all_tasks_blocked()
            assert guest.received() == []
            async with guest.running(device, resume=True):
                assert await stream.receive_some() == b"just before"
                packets = await guest.settled()
                assert [packet.payload for packet in packets] == [b"while paused"]
                # No RX buffer was lost on the way.
                held = guest.rx.size - guest.rx.free_descriptors
                assert held == guest.rx.size
                assert device._muxer._session is not None
                assert device._muxer._session.queues.rx.queue.in_flight <= 1
            device.reset()
            assert await stream.receive_some() == b""


async def test_a_connect_that_meets_a_pause_is_answered_after_it() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    incoming = guest.listen(52)
    async with device.lifespan(), trio.open_nursery() as nursery:

        async def connect() -> None:
            async with await device.connect(52) as stream:
                await stream.send_all(b"hello")

        async with guest.running(device):
            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        async with guest.running(device, resume=True):
            nursery.start_soon(guest.serve)
            for _ in range(2):
                far = await incoming.receive()
                assert await far.receive_all() == b"hello"
                await far.aclose()
            nursery.cancel_scope.cancel()


async def test_after_the_machines_end_everything_says_that_it_is_gone() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    listener = device.listen(PORT)
    async with trio.open_nursery() as nursery:

        async def gone(operation, *args) -> None:
            with pytest.raises(GuestGone):
                await operation(*args)

        async with guest.attached(device):
            nursery.start_soon(gone, device.connect, 52)
            nursery.start_soon(gone, listener.accept)
            await trio.testing.wait_all_tasks_blocked()
        # And whoever comes later.
        nursery.start_soon(gone, device.connect, 52)
        nursery.start_soon(gone, listener.accept)
    with pytest.raises(GuestGone):
        device.listen(PORT)
    await listener.aclose()
    assert device.statistics.connections == 0


async def test_what_was_sent_before_an_orderly_end_survives_a_reset() -> None:
    """A guest that says its last words, closes, and powers off."""
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    words = bytes(range(256)) * 1024
    async with device.lifespan(), device.listen(PORT) as listener:
        async with guest.running(device):
            guest.send(Op.REQUEST, 1, PORT)
            await guest.settled()
            for start in range(0, len(words), 1024):
                guest.send(Op.RW, 1, PORT, words[start : start + 1024])
                await guest.settled()
            guest.send(Op.SHUTDOWN, 1, PORT, flags=3)
            await guest.settled()
        device.reset()
        async with await listener.accept() as stream:
            received = b""
            while part := await stream.receive_some():
                received += part
    assert received == words


async def test_cancelling_run_returns_at_once_and_lets_go_of_guest_memory() -> None:
    device, guest = VsockDevice(VsockConfig()), GuestVsock()
    async with device.lifespan():
        guest.post_rx()
        with trio.CancelScope() as scope:
            scope.cancel()
            await device.run(activation(guest.rx, guest.tx, guest.event))
        async with guest.running(device):
            pass
        with pytest.raises(GuestGone):
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.cancel()
            raise GuestGone("an error of the block comes out as it is")


async def test_an_error_in_the_machine_is_not_wrapped_by_the_devices_lifespan() -> None:
    with pytest.raises(KeyError):
        async with VsockDevice(VsockConfig()).lifespan():
            raise KeyError("of the block")


async def test_cancellation_passes_through_the_lifespan() -> None:
    with trio.CancelScope() as scope:
        async with VsockDevice(VsockConfig()).lifespan():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


def test_a_guest_that_never_confirms_an_end_is_reset_after_two_seconds() -> None:
    async def main() -> None:
        device, guest = VsockDevice(VsockConfig()), GuestVsock()
        async with guest.attached(device), device.listen(PORT) as listener:
            packets = []
            for port in (1, 2):
                guest.send(Op.REQUEST, port, PORT)
                await guest.settled()
                await (await listener.accept()).aclose()
                packets += await guest.settled()
            assert [packet.op for packet in packets] == [Op.SHUTDOWN, Op.SHUTDOWN]
            ended = trio.current_time()
            await trio.sleep_until(ended + limits.SHUTDOWN_TIMEOUT_S - 0.01)
            assert device.statistics.connections == 2
            await trio.sleep_until(ended + limits.SHUTDOWN_TIMEOUT_S + 0.01)
            assert device.statistics.connections == 0
            assert [packet.op for packet in await guest.settled()] == [Op.RST, Op.RST]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_entry_point_names_the_plugin() -> None:
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    assert 'vsock = "microvm_devices.vsock.plugin"' in pyproject.read_text()
