"""A device's life under the vhost-user server, with real descriptors and shared memory."""

import os
import socket
import sys

import pytest
import trio

from microvm.abc import ActiveQueue
from microvm.testing.vhost_user_frontend import VhostUserFrontEnd, front_end
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES, RING_INDIRECT_DESC, VERSION_1
from microvm.virtio.pause_notice import PauseNotice
from microvm.virtio.vhost_user import serve_vhost_user
from microvm.virtio.vhost_user.message import Request, VringFd

from .vhost_user_echo import Echo, exchange, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's"),
    pytest.mark.usefixtures("no_fd_or_mapping_is_left"),
]


@pytest.mark.parametrize("takes", [True, False], ids=["enabled", "as before QEMU 7.2"])
async def test_a_device_serves_its_rings_from_start_to_hang_up(takes: bool) -> None:
    device = Echo()
    async with front_end(device, queues=2, takes_protocol_features=takes) as vmm:
        assert await vmm.read_config(2, 3) == bytes([2, 3, 4])
        await vmm.start()
        for round_ in range(20):
            for index in range(2):
                assert await exchange(vmm, index, b"abc%d" % round_) == (b"abc%d" % round_)[::-1]
    assert len(device.activations) == device.runs_ended == 1
    assert device.activations[0].features == RING_FEATURES
    assert len(device.activations[0].queues) == 2


@pytest.mark.parametrize(
    "features",
    [
        VERSION_1,
        VERSION_1 | RING_EVENT_IDX,
        VERSION_1 | RING_INDIRECT_DESC,
        RING_FEATURES,
    ],
)
async def test_every_choice_of_ring_features_works(features: int) -> None:
    device = Echo()
    async with front_end(device, queues=1) as vmm:
        vmm.features = features
        vmm.reset()
        await vmm.start()
        for _ in range(40):
            assert await exchange(vmm, 0, b"xyz") == b"zyx"
    assert device.activations[0].features == features


async def test_a_pause_keeps_the_rings_and_a_reset_begins_anew() -> None:
    device = Echo()
    async with front_end(device, queues=2) as vmm:
        await vmm.start()
        await exchange(vmm, 0, b"one")
        assert await vmm.stop() == [1, 0]
        assert device.runs_ended == 1
        # Offered while nobody runs: found when the device goes on, without another kick.
        vmm.queues[0].want_interrupt()
        vmm.queues[0].add([b"two"], [3])
        await vmm.start()
        await vmm.queues[0].irq.wait()
        assert vmm.queues[0].used()[0].data == b"owt"
        assert await vmm.stop() == [2, 0]
        vmm.reset()
        await vmm.start()
        assert await exchange(vmm, 0, b"three") == b"eerht"
    assert device.life == ["reset", "run", "run", "reset", "run", "reset"]
    assert device.runs_ended == 3


@pytest.mark.parametrize("start", [0, 0x100, 0xFFFF])
async def test_a_pause_that_was_announced_is_no_reset_wherever_the_rings_stand(start: int) -> None:
    """Index 0xFFFF and one request more: all stand at 0, as after a reset."""
    device, pause = Echo(), PauseNotice()
    async with front_end(device, queues=1, pause=pause) as vmm:
        vmm.bases = [start]
        vmm.queues[0].begin_at(start)
        await vmm.start()
        if start:
            await exchange(vmm, 0, b"one")
        before = device.life.count("reset")
        pause.announce()
        assert await vmm.stop() == [(start + bool(start)) & 0xFFFF]
        pause.withdraw()
        await vmm.start()
        assert await exchange(vmm, 0, b"two") == b"owt"
        assert device.life.count("reset") == before
        # And who was not paused, or has gone on, begins anew.
        await vmm.stop()
        vmm.reset()
        await vmm.start()
        assert await exchange(vmm, 0, b"three") == b"eerht"
        assert device.life.count("reset") == before + 1


async def test_a_reset_at_index_0_without_a_pause_is_a_reset() -> None:
    device, pause = Echo(), PauseNotice()
    async with front_end(device, queues=1, pause=pause) as vmm:
        vmm.bases = [0xFFFF]
        vmm.queues[0].begin_at(0xFFFF)
        await vmm.start()
        await exchange(vmm, 0, b"one")
        pause.announce()
        pause.withdraw()  # it failed
        assert await vmm.stop() == [0]
        vmm.reset()
        await vmm.start()
        await exchange(vmm, 0, b"two")
    assert device.life == ["run", "reset", "run", "reset"]


async def test_new_memory_in_flight_keeps_the_rings() -> None:
    device = Echo()
    async with front_end(device, queues=1) as vmm:
        await vmm.start()
        await exchange(vmm, 0, b"one")
        await vmm.set_memory()
        assert device.runs_ended == 1
        assert await exchange(vmm, 0, b"two") == b"owt"
    assert device.life == ["reset", "run", "run", "reset"]


async def test_an_interrupt_takes_the_call_of_the_moment() -> None:
    async with front_end(Echo(), queues=1) as vmm:
        await vmm.start()
        await exchange(vmm, 0, b"one")
        other = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            await vmm.tell(Request.SET_VRING_CALL, VringFd(index=0, has_fd=True), [other])
            await vmm.ask_u64(Request.GET_QUEUE_NUM)
            queue = vmm.queues[0]
            queue.want_interrupt()
            queue.add([b"two"], [3])
            queue.kick()
            await trio.lowlevel.wait_readable(other)
            assert queue.used()[0].data == b"owt"
        finally:
            os.close(other)


async def test_a_driver_that_polls_gets_no_interrupts() -> None:
    async with front_end(Echo(), queues=1) as vmm:
        await vmm.tell(Request.SET_VRING_CALL, VringFd(index=0, has_fd=False))
        await vmm.start()
        vmm.queues[0].add([b"one"], [3])
        vmm.queues[0].kick()
        while not (used := vmm.queues[0].used()):
            await trio.lowlevel.checkpoint()
        assert used[0].data == b"eno"


async def test_what_a_stopped_device_had_not_used_is_offered_again() -> None:
    class Holder(Echo):
        """Takes requests and keeps them, until its second run."""

        async def serve(self, active: ActiveQueue) -> None:
            if len(self.activations) == 2:
                await super().serve(active)
            await active.doorbell.wait()
            while active.queue.in_flight < 2:
                if active.queue.pop() is None:
                    await active.doorbell.wait()
            await trio.sleep_forever()

    device = Holder()
    async with front_end(device, queues=1) as vmm:
        await vmm.start()
        queue = vmm.queues[0]
        for data in (b"one", b"two"):
            queue.add([data], [3])
            queue.kick()
        await until(lambda: bool(device.activations))
        held = device.activations[0].queues[0].queue
        await until(lambda: held.in_flight == 2)
        queue.want_interrupt()
        assert await vmm.stop() == [0]
        vmm.bases = [0]
        await vmm.start()
        used: list[bytes] = []
        while len(used) < 2:
            await queue.irq.wait()
            used += [one.data for one in queue.used()]
            queue.want_interrupt()
        assert used == [b"eno", b"owt"]


async def test_cancelling_the_server_ends_the_run_and_gives_everything_back() -> None:
    device = Echo()
    ours, theirs = socket.socketpair()
    vmm = VhostUserFrontEnd(ours, queues=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_vhost_user, theirs, device)
        await vmm.realize()
        await vmm.start()
        await exchange(vmm, 0, b"x")
        nursery.cancel_scope.cancel()
    assert device.runs_ended == 1
    assert theirs.fileno() == -1
    vmm.close()


async def test_the_front_end_hears_of_a_change_of_the_configuration_in_a_run_alone() -> None:
    device = Echo()
    async with front_end(device, queues=2) as vmm:
        await vmm.start()
        await until(lambda: bool(device.activations))
        device.activations[0].config_changed()
        with trio.fail_after(5):
            await vmm.config_change()
        await vmm.stop()
        device.activations[0].config_changed()
        vmm.channel.setblocking(False)
        with pytest.raises(BlockingIOError):
            vmm.channel.recv(1)


async def test_a_front_end_that_does_not_read_what_it_is_told_holds_nobody_up() -> None:
    device = Echo()
    async with front_end(device, queues=2) as vmm:
        await vmm.start()
        await until(lambda: bool(device.activations))
        for _ in range(10_000):
            device.activations[0].config_changed()
        assert await exchange(vmm, 0, b"abc") == b"cba"
        vmm.channel.shutdown(socket.SHUT_RDWR)
        device.activations[0].config_changed()
        assert await exchange(vmm, 0, b"abc") == b"cba"
