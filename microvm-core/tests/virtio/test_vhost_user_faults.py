"""Whose fault it is under the vhost-user server: a guest's is logged, a device's comes out."""

import logging
import os
import socket
import sys

import attrs
import pytest
import trio

from microvm.abc import Activation, ActiveQueue, VirtioDevice
from microvm.errors import GuestError, QueueError
from microvm.testing.vhost_user_frontend import USER_BASE, VhostUserFrontEnd, front_end
from microvm.virtio.features import RING_FEATURES, VERSION_1
from microvm.virtio.vhost_user import serve_vhost_user
from microvm.virtio.vhost_user.message import Request, VringAddresses, VringFd

from .vhost_user_echo import Echo, exchange, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's"),
    pytest.mark.usefixtures("no_fd_or_mapping_is_left"),
]


# --- faults of the guest -----------------------------------------------------------------------


async def test_a_driver_that_breaks_a_rule_is_logged_once_and_the_device_rests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Echo()
    async with front_end(device, queues=2) as vmm:
        await vmm.start()
        await exchange(vmm, 0, b"fine")
        queue = vmm.queues[0]
        with caplog.at_level(logging.WARNING):
            queue.write_descriptor(9, 1 << 60, 1, 0)
            queue.offer(9)
            queue.kick()
            await trio.lowlevel.wait_readable(vmm.errors[0])
            assert device.runs_ended == 1
            # The session lives, and nothing starts the device again but a driver that does.
            for _ in range(3):
                queue.doorbell.ring()
                assert await vmm.ask_u64(Request.GET_QUEUE_NUM) == 2
            assert len(device.activations) == 1
        assert len(caplog.records) == 1
        assert "Echo" in caplog.text
        assert "device 42" in caplog.text
        assert "Chain 9" in caplog.text
        assert await vmm.stop() == [1, 0]
        vmm.reset()
        await vmm.start()
        assert await exchange(vmm, 0, b"well") == b"llew"


async def test_a_driver_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    device = Echo()
    with caplog.at_level(logging.WARNING):
        async with front_end(device, queues=1) as vmm:
            for _ in range(15):
                vmm.reset()
                vmm.queues[0].offer(9999)
                await vmm.start()
                await trio.lowlevel.wait_readable(vmm.errors[0])
                os.eventfd_read(vmm.errors[0])
                await vmm.stop()
    assert device.runs_ended == 15
    assert len(caplog.records) == 10
    assert "not logged" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
@pytest.mark.parametrize("address", [0, USER_BASE + 0xF0000, USER_BASE + 0x100003, 1 << 63])
async def test_rings_that_are_not_in_memory_rest_the_device(
    part: str, address: int, caplog: pytest.LogCaptureFixture
) -> None:
    device = Echo()
    async with front_end(device, queues=1) as vmm:
        await vmm.start()
        await vmm.stop()
        addresses = VringAddresses(
            index=0,
            flags=0,
            desc=USER_BASE + 0x100000,
            avail=USER_BASE + 0x101000,
            used=USER_BASE + 0x102000,
            log=0,
        )
        with caplog.at_level(logging.WARNING):
            await vmm.tell(Request.SET_VRING_ADDR, attrs.evolve(addresses, **{part: address}))
            kick = [vmm.doorbells[0].fd]
            await vmm.tell(Request.SET_VRING_KICK, VringFd(index=0, has_fd=True), kick)
            await vmm.enable(True)
            await vmm.ask_u64(Request.GET_QUEUE_NUM)
            await until(lambda: bool(caplog.records))
        assert len(device.activations) == 1
        await vmm.start()
        await vmm.stop()


async def test_a_legacy_driver_rests_the_device(caplog: pytest.LogCaptureFixture) -> None:
    device = Echo()
    with caplog.at_level(logging.WARNING):
        async with front_end(device, queues=1) as vmm:
            vmm.features = RING_FEATURES & ~VERSION_1
            await vmm.start()
            await until(lambda: bool(caplog.records))
    assert "VERSION_1" in caplog.text
    assert device.activations == []


# --- faults of the device ----------------------------------------------------------------------


class Broken(Echo):
    """Raises what it is given, in a task of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def serve(self, active: ActiveQueue) -> None:
        await active.doorbell.wait()
        raise self.error


async def serve_until_it_raises(device: VirtioDevice) -> BaseException:
    """Start a device with a front end, and return what comes out of the server."""
    ours, theirs = socket.socketpair()
    vmm = VhostUserFrontEnd(ours, queues=1)
    raised: list[BaseException] = []

    async def serve() -> None:
        try:
            await serve_vhost_user(theirs, device)
        except Exception as error:
            raised.append(error)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await vmm.realize()
            await vmm.start()
    finally:
        vmm.close()
    return raised[0]


async def test_a_devices_bug_comes_out_as_it_is() -> None:
    assert repr(await serve_until_it_raises(Broken(KeyError("bug")))) == "KeyError('bug')"


async def test_bugs_of_two_tasks_come_out_together() -> None:
    both = ExceptionGroup("", [KeyError("one"), GuestError("two")])
    raised = await serve_until_it_raises(Broken(both))
    # The guest's part is logged, ours is raised.
    assert repr(raised) == "KeyError('one')"


async def test_guest_errors_in_groups_are_guest_errors(caplog: pytest.LogCaptureFixture) -> None:
    device = Broken(ExceptionGroup("", [QueueError("one."), QueueError("two.")]))
    with caplog.at_level(logging.WARNING):
        async with front_end(device, queues=1) as vmm:
            await vmm.start()
            await trio.lowlevel.wait_readable(vmm.errors[0])
            await vmm.stop()
    assert len(caplog.records) == 1


async def test_a_device_that_ends_by_itself_is_left_alone() -> None:
    class Brief(Echo):
        async def run(self, activation: Activation) -> None:
            self.activations.append(activation)

    device = Brief()
    async with front_end(device, queues=1) as vmm:
        await vmm.start()
        await vmm.ask_u64(Request.GET_QUEUE_NUM)
        assert len(device.activations) == 1
        await vmm.stop()
        await vmm.start()
        assert len(device.activations) == 2


async def test_a_device_that_keeps_a_view_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Keeper(Echo):
        kept: memoryview | None = None

        async def run(self, activation: Activation) -> None:
            queue = activation.queues[0].queue
            while (chain := queue.pop()) is None:
                await activation.queues[0].doorbell.wait()
            self.kept = chain.readable[0]
            queue.add_used(chain.head, 0)
            activation.queues[0].notify()

    device = Keeper()
    with caplog.at_level(logging.WARNING):
        async with front_end(device, queues=1) as vmm:
            await vmm.start()
            assert await exchange(vmm, 0, b"kept") == b""
    assert "kept views" in caplog.text
    assert device.kept is not None
    assert bytes(device.kept) == b"kept"
    device.kept.release()
