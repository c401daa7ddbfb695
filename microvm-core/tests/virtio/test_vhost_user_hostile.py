"""Front ends that hang up, err or attack: a typed error or peace, and nothing is left of them."""

import array
import contextlib
import os
import socket
import sys

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm.abc import Activation
from microvm.errors import BackendError
from microvm.testing.vhost_user_frontend import USER_BASE, VhostUserFrontEnd, front_end
from microvm.virtio.features import RING_FEATURES
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

from .vhost_user_echo import Echo, mapped, open_fds, until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's"),
    pytest.mark.usefixtures("no_fd_or_mapping_is_left"),
]


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
