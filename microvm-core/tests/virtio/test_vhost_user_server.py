"""The vhost-user server with real descriptors and shared memory, and what it leaves behind.

One long file on purpose: every test here needs the same echo device and the same census of
descriptors and mappings, and reads best beside the others that use them.
"""

import array
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.abc import Activation, ActiveQueue, VirtioDevice
from microvm.errors import BackendError, GuestError, QueueError
from microvm.testing.vhost_user_frontend import USER_BASE, VhostUserFrontEnd, front_end
from microvm.virtio.chain import ChainReader, ChainWriter
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES, RING_INDIRECT_DESC, VERSION_1
from microvm.virtio.vhost_user import serve_vhost_user
from microvm.virtio.vhost_user.message import (
    HEADER,
    U64,
    Empty,
    MemoryRegion,
    MemoryTable,
    Payload,
    Request,
    VringAddresses,
    VringFd,
    VringState,
    encode_payload,
    encode_request,
    expected_fds,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's")


def open_fds() -> set[str]:
    with os.scandir("/proc/self/fd") as entries:
        return {entry.name for entry in entries}


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("guest-ram")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Around every test here: as many descriptors and mappings after it as before."""
    before = open_fds()
    yield
    assert len(open_fds()) == len(before)
    assert mapped() == 0


class Echo(VirtioDevice):
    """Answers each request with its bytes reversed, and takes down what happens to it."""

    device_id = 42
    queue_max_sizes = (64, 64)

    def __init__(self) -> None:
        self.activations: list[Activation] = []
        self.life: list[str] = []
        self.runs_ended = 0

    def read_config(self, offset: int, length: int) -> bytes:
        return bytes(range(offset, offset + length))

    def reset(self) -> None:
        self.life.append("reset")

    async def run(self, activation: Activation) -> None:
        self.activations.append(activation)
        self.life.append("run")
        memory = activation.queues[0].queue
        try:
            async with trio.open_nursery() as nursery:
                for active in activation.queues:
                    nursery.start_soon(self.serve, active)
        finally:
            # Cancelled: memory must still be there while we clean up.
            with trio.CancelScope(shield=True):
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
            memory.enable_notification()
            self.runs_ended += 1

    async def serve(self, active: ActiveQueue) -> None:
        queue = active.queue
        while True:
            await active.doorbell.wait()
            busy = True
            while busy:
                queue.disable_notification()
                for chain in queue.pop_all():
                    reader, writer = ChainReader(chain), ChainWriter(chain)
                    writer.write(reader.read(reader.remaining)[::-1])
                    queue.add_used(chain.head, writer.written)
                active.notify()
                busy = queue.enable_notification()


async def exchange(vmm: VhostUserFrontEnd, index: int, data: bytes) -> bytes:
    queue = vmm.queues[index]
    queue.want_interrupt()
    queue.add([data], [len(data)])
    queue.kick()
    await queue.irq.wait()
    (used,) = queue.used()
    return used.data


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until it holds; the test's own bound is the limit."""
    while not condition():
        await trio.lowlevel.checkpoint()


# --- the configuration space ---------------------------------------------------------------------


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


# --- life of a device --------------------------------------------------------------------------


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


# --- faults of the front end -------------------------------------------------------------------


async def refuse(
    data: bytes, fds: list[int] | None = None, *, hang_up: bool = False
) -> BackendError:
    """Send bytes to a fresh server and return the error that it ends with."""
    ours, theirs = socket.socketpair()
    raised: list[BackendError] = []

    async def serve() -> None:
        try:
            await serve_vhost_user(theirs, Echo())
        except BackendError as error:
            raised.append(error)

    with ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            rights = array.array("i", fds or [])
            ours.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])
            if hang_up:
                ours.close()
    assert raised, "The server took it."
    return raised[0]


def message(request: Request, payload: Payload | None = None) -> bytes:
    return encode_request(request, encode_payload(payload or Empty()))


async def test_an_end_between_messages_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(message(Request.SET_OWNER))
    ours.close()
    await serve_vhost_user(theirs, Echo())


async def test_an_end_with_an_answer_unread_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(message(Request.GET_FEATURES) * 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_vhost_user, theirs, Echo())
        await trio.lowlevel.wait_readable(ours)
        ours.close()


async def test_a_message_cut_at_any_byte_is_an_error() -> None:
    whole = message(Request.SET_FEATURES, U64(value=1 << 32))
    for length in range(1, len(whole)):
        error = await refuse(whole[:length], hang_up=True)
        assert "middle of a message" in error.message


async def test_a_message_byte_by_byte_is_a_message() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_vhost_user, theirs, Echo())
            for byte in message(Request.GET_FEATURES):
                ours.sendall(bytes([byte]))
                await trio.lowlevel.checkpoint()
            await trio.lowlevel.wait_readable(ours)
            assert len(ours.recv(100)) == HEADER.size + 8
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        HEADER.pack(6, 1, 16) + bytes(16),
        HEADER.pack(1, 1, 1 << 31),
        HEADER.pack(1, 1, 4) + bytes(4),
        HEADER.pack(2, 1, 4) + bytes(4),
    ],
)
async def test_what_is_not_the_protocol_ends_it(data: bytes) -> None:
    await refuse(data)


async def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    with open("/dev/null", "rb") as null:  # noqa: ASYNC230
        for count in (1, 8, 9, 10, 253):
            await refuse(message(Request.SET_OWNER), [null.fileno()] * count)


async def test_a_kick_that_is_no_eventfd_is_refused() -> None:
    reading, writing = os.pipe()
    payload = VringFd(index=0, has_fd=True)
    try:
        for fd in (reading, writing):
            for request in (
                Request.SET_VRING_KICK,
                Request.SET_VRING_CALL,
                Request.SET_VRING_ERR,
            ):
                error = await refuse(message(request, payload), [fd])
                assert "eventfd" in error.message
    finally:
        os.close(reading)
        os.close(writing)


def region(**changes: int) -> MemoryRegion:
    plain = MemoryRegion(guest_address=0, size=0x2000, user_address=USER_BASE, mmap_offset=0)
    return attrs.evolve(plain, **changes)


@pytest.mark.parametrize(
    "regions",
    [
        [region(size=0)],
        [region(size=0x4000)],  # beyond the file's end: a read would be a SIGBUS
        [region(mmap_offset=0x2000)],
        [region(mmap_offset=(1 << 64) - 1)],
        [region(size=(1 << 64) - 1)],
        [region(size=1 << 63, mmap_offset=1 << 63)],
        [region(guest_address=(1 << 64) - 0x1000)],
        [region(guest_address=7)],
        [region(), region(guest_address=0x1000)],
        [region(), region()],
    ],
)
async def test_memory_that_can_not_be_is_refused(regions: list[MemoryRegion]) -> None:
    memfd = os.memfd_create("guest-ram")
    try:
        os.ftruncate(memfd, 0x3000)
        table = MemoryTable(regions=tuple(regions))
        error = await refuse(message(Request.SET_MEM_TABLE, table), [memfd] * len(regions))
        assert "memory can't be mapped" in error.message
    finally:
        os.close(memfd)


async def test_memory_that_is_no_file_is_refused() -> None:
    event = os.eventfd(0)
    try:
        table = MemoryTable(regions=(region(),))
        await refuse(message(Request.SET_MEM_TABLE, table), [event])
    finally:
        os.close(event)


@pytest.mark.parametrize("offset", [0, 0x1000, 0x10, 0x1230])
async def test_a_region_may_begin_anywhere_in_its_file(offset: int) -> None:
    """Also inside a page: the mapping begins before it, the region does not."""

    class Peek(Echo):
        async def run(self, activation: Activation) -> None:
            queue = activation.queues[0].queue
            chain = queue.pop()
            assert chain is not None
            seen.append(bytes(chain.readable[0]))

    seen: list[bytes] = []
    async with front_end(Peek(), queues=1) as vmm:
        vmm.queues[0].add([b"here"])
        content = vmm.memory.read(0x100000, 0x8000)
        memfd = os.memfd_create("guest-ram")
        try:
            os.ftruncate(memfd, offset + len(content))
            os.pwrite(memfd, content, offset)
            moved = region(
                guest_address=0x100000,
                size=len(content),
                user_address=USER_BASE + 0x100000,
                mmap_offset=offset,
            )
            vmm.memory_table = MemoryTable(regions=(moved,))
            vmm.memory_fds = [memfd]
            await vmm.start()
            await until(lambda: bool(seen))
        finally:
            os.close(memfd)
    assert seen == [b"here"]


async def test_a_refusal_is_told_to_a_front_end_that_asks() -> None:
    ours, theirs = socket.socketpair()
    vmm = VhostUserFrontEnd(ours, queues=1)
    raised: list[BackendError] = []

    async def serve() -> None:
        try:
            await serve_vhost_user(theirs, Echo())
        except BackendError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await vmm.realize()
        table = MemoryTable(regions=(region(size=1 << 40),))
        reply = await vmm.ask(Request.SET_MEM_TABLE, table, [vmm.memory_fd], need_reply=True)
        assert reply == (1).to_bytes(8, "little")
    assert len(raised) == 1
    vmm.close()


REQUESTS = st.one_of(
    st.tuples(st.sampled_from([Request.GET_FEATURES, Request.SET_OWNER]), st.just(Empty())),
    st.tuples(
        st.sampled_from([Request.SET_FEATURES, Request.SET_PROTOCOL_FEATURES]),
        st.builds(U64, value=st.sampled_from([0, 9, RING_FEATURES, RING_FEATURES | 1 << 30])),
    ),
    st.tuples(
        st.sampled_from(
            [
                Request.SET_VRING_NUM,
                Request.SET_VRING_BASE,
                Request.GET_VRING_BASE,
                Request.SET_VRING_ENABLE,
            ]
        ),
        st.builds(VringState, index=st.integers(0, 2), num=st.sampled_from([0, 1, 8, 0x1_0000])),
    ),
    st.tuples(
        st.just(Request.SET_VRING_ADDR),
        st.builds(
            VringAddresses,
            index=st.integers(0, 1),
            flags=st.just(0),
            desc=st.sampled_from([USER_BASE, USER_BASE + 3, 0]),
            avail=st.just(USER_BASE + 0x400),
            used=st.just(USER_BASE + 0x800),
            log=st.just(0),
        ),
    ),
    st.tuples(
        st.sampled_from([Request.SET_VRING_KICK, Request.SET_VRING_CALL]),
        st.builds(VringFd, index=st.integers(0, 1), has_fd=st.booleans()),
    ),
    st.tuples(
        st.just(Request.SET_MEM_TABLE),
        st.builds(
            MemoryTable,
            regions=st.lists(
                st.builds(
                    region,
                    size=st.sampled_from([0x1000, 0x2000, 0x4000]),
                    guest_address=st.sampled_from([0, 0x2000, 0x10_0000]),
                ),
                min_size=1,
                max_size=2,
            ).map(tuple),
        ),
    ),
)


@settings(max_examples=80, deadline=None)
@given(
    started=st.booleans(),
    conversation=st.lists(st.tuples(REQUESTS, st.booleans()), max_size=25),
    tail=st.binary(max_size=20),
)
def test_any_conversation_ends_in_a_typed_error_or_in_peace(
    started: bool, conversation: list[tuple[tuple[Request, Payload], bool]], tail: bytes
) -> None:
    """From the beginning, or with a device that runs; with the right descriptors, mostly."""
    before = open_fds()

    async def serve(sock: socket.socket) -> None:
        with contextlib.suppress(BackendError):
            await serve_vhost_user(sock, Echo())

    async def converse() -> None:
        ours, theirs = socket.socketpair()
        vmm = VhostUserFrontEnd(ours, queues=2)
        try:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve, theirs)
                    if started:
                        await vmm.realize()
                        await vmm.start()
                    # The server may have hung up by the time we say the rest.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        for (request, payload), right in conversation:
                            fds = [vmm.memory_fd] * expected_fds(payload)
                            if isinstance(payload, VringFd):
                                fds = [vmm.doorbells[0].fd] * expected_fds(payload)
                            if not right and len(conversation) % 3 == 0:
                                fds = fds[1:] or [vmm.memory_fd]
                            await vmm.send(message(request, payload), fds)
                        await vmm.send(tail or b"\0")
                    vmm.hang_up()
        finally:
            vmm.close()

    trio.run(converse)
    assert len(open_fds()) == len(before)
    assert mapped() == 0
