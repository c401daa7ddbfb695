"""Guests that break rules: a status or a reset for them, bounded work, others unharmed (35-43)."""

import tracemalloc
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm.config import DriveConfig
from microvm.errors import QueueError
from microvm.testing.flipping import flipping
from microvm.testing.queue_driver import QueueDriver, activation
from microvm.virtio.chain import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR
from microvm_devices.blk import layout
from microvm_devices.blk.device import BlkDevice
from microvm_devices.blk.layout import HEADER, S_IOERR, S_OK, S_UNSUPP, T_IN, T_OUT
from microvm_devices.blk.request import judge, parse
from microvm_devices.blk.testing import ALL_FEATURES, GuestBlk, MemoryDisk, pack_segments

DRIVE = DriveConfig(path="/a/disk")


async def broken(device: BlkDevice, guest: GuestBlk) -> QueueError:
    """The error with which a run ends by itself."""
    with pytest.raises(BaseExceptionGroup) as caught:
        await device.run(activation(*guest.queues))
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        assert len(error.exceptions) == 1
        error = error.exceptions[0]
    assert isinstance(error, QueueError)
    return error


@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        ([b""], [1]),
        ([bytes(15)], [1]),
        ([bytes(16)], []),
        ([HEADER.pack(T_OUT, 0, 0), bytes(512)], []),
        ([], [512, 1]),
    ],
)
async def test_a_request_that_can_not_be_answered_asks_for_a_reset(
    readable: Sequence[bytes], writable: Sequence[int]
) -> None:
    """Row 35."""
    device, guest = BlkDevice(DRIVE, MemoryDisk().opener()), GuestBlk()
    async with device.lifespan():
        guest.queues[0].add(readable, writable)
        await broken(device, guest)
        # And after the reset it works.
        async with guest.running(device):
            assert await guest.write(0, bytes(512)) == S_OK


@pytest.mark.parametrize("cached", [True, False])
async def test_what_was_asked_before_the_broken_request_is_answered(cached: bool) -> None:
    disk = MemoryDisk(cached=cached)
    device, guest = BlkDevice(DRIVE, disk.opener()), GuestBlk()
    async with device.lifespan():
        heads = [guest.submit(T_IN, 0, room=512) for _ in range(3)]
        heads.append(guest.submit(T_OUT, 1, b"b" * 512))
        guest.queues[0].add([bytes(3)], [1])
        late = guest.submit(T_OUT, 2, b"l" * 512)
        await broken(device, guest)
        answers = guest.answered()
        assert [answers[head].status for head in heads] == [S_OK] * 4
        assert late not in answers
        assert disk.data[512:1536] == b"b" * 512 + bytes(512)


async def test_the_queue_s_own_rules_hold_for_disks_too() -> None:
    """Rows 17, 19, 20: one each, the rest is the queue's."""
    device, guest = BlkDevice(DRIVE, MemoryDisk().opener()), GuestBlk()
    driver = guest.queues[0]
    async with device.lifespan():
        driver.avail_idx = 1000
        await broken(device, guest)
        driver.restart()
        driver.offer(5000)
        await broken(device, guest)
        driver.restart()
        driver.write_descriptor(0, 4096, 16, DESC_F_NEXT, 0)
        driver.offer(0)
        await broken(device, guest)


async def test_the_header_is_read_once() -> None:
    """Row 29: time of check is time of use."""
    driver = QueueDriver(size=8, features=ALL_FEATURES)
    inside, outside = HEADER.pack(T_OUT, 0, 0), HEADER.pack(T_OUT, 0, 1 << 40)
    read, erase = HEADER.pack(T_IN, 0, 0), HEADER.pack(layout.T_WRITE_ZEROES, 0, 0)
    for _ in range(50):
        driver.restart()
        head = driver.add([inside, bytes(512)], [1])
        descriptor = driver.memory.read(driver.layout.desc + 16 * head, 16)
        address = int.from_bytes(descriptor[:8], "little")
        chain = driver.queue().pop()
        assert chain is not None
        with flipping(driver.memory, address, [outside, read, erase, inside]):
            request = parse(chain)
            judge(request, size=4096, read_only=False, features=ALL_FEATURES)
        # Whichever it was: all of it was one header.
        seen = HEADER.pack(request.type, 0, request.offset // 512)
        assert seen in (inside, outside, read, erase)
        if seen == outside:
            assert request.status == S_IOERR


# --- 43: much at once ----------------------------------------------------------------------------


async def test_a_queue_full_of_large_requests_costs_no_memory_of_ours() -> None:
    """Row 43: 256 requests of 1 MiB, 250 buffers each; the data is where it was."""
    size = 1 << 20
    disk = MemoryDisk(size)
    driver = QueueDriver(GuestBlk(mem_size=64 << 20).memory, size=256, features=ALL_FEATURES)
    region = driver.heap.take(size)[0]
    header = driver.heap.take(16)[0]
    table = driver.heap.take(16 * 256)[0]
    driver.memory.write(header, HEADER.pack(T_IN, 0, 0))
    buffers = 252
    pieces = [(region + 4096 * (n % 256), 4096) for n in range(buffers)]
    pieces += [(region, size - buffers * 4096)] if size > buffers * 4096 else []
    entries = [DESCRIPTOR.pack(header, 16, DESC_F_NEXT, 1)]
    for address, length in pieces:
        flags = DESC_F_NEXT | DESC_F_WRITE
        entries.append(DESCRIPTOR.pack(address, length, flags, len(entries) + 1))
    entries.append(DESCRIPTOR.pack(header + 8, 1, DESC_F_WRITE, 0))
    driver.memory.write(table, b"".join(entries))
    for head in range(256):
        driver.write_descriptor(head, table, 16 * len(entries), DESC_F_INDIRECT)
    device = BlkDevice(DRIVE, disk.opener())
    async with device.lifespan(), trio.open_nursery() as nursery:
        tracemalloc.start()
        try:
            for head in range(256):
                driver.memory.write(header, HEADER.pack(T_IN, 0, 0))
                driver.offer(head)
            nursery.start_soon(device.run, activation(driver))
            used = driver.memory.slice(driver.layout.used, 4).cast("H")
            while used[1] < 256:
                driver.memory.write(header, HEADER.pack(T_IN, 0, 0))  # the status lies in it
                await trio.lowlevel.checkpoint()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            nursery.cancel_scope.cancel()
    assert peak < 32 << 20
    assert device.counters()["requests"] == 256


# --- anything ------------------------------------------------------------------------------------

HEADERS = st.builds(
    HEADER.pack,
    st.one_of(st.sampled_from([0, 1, 4, 8, 11, 13]), st.integers(0, 0xFFFF_FFFF)),
    st.integers(0, 0xFFFF_FFFF),
    st.one_of(st.integers(0, 64), st.integers(0, (1 << 64) - 1)),
)
SEGMENTS = st.builds(
    pack_segments,
    st.tuples(
        st.one_of(st.integers(0, 64), st.integers(0, (1 << 64) - 1)),
        st.one_of(st.integers(0, 64), st.integers(0, 0xFFFF_FFFF)),
        st.integers(0, 3),
    ),
)
PAYLOADS = st.one_of(
    st.just(b""), SEGMENTS, st.integers(1, 8).map(lambda n: bytes(512 * n)), st.binary(max_size=99)
)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    whole = draw(HEADERS) + draw(PAYLOADS)
    if draw(st.integers(0, 255)) == 0:
        whole = whole[: draw(st.integers(0, 15))]
    edges = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    readable = [whole[a:b] for a, b in zip([0, *edges], [*edges, len(whole)], strict=True)]
    writable = draw(st.lists(st.integers(0, 1500), max_size=3))
    if draw(st.integers(0, 255)):
        writable.append(1)
    return readable, writable


@given(st.lists(chains(), min_size=1, max_size=12), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_requests_are_answered_or_end_in_a_reset(
    chains: list[tuple[list[bytes], list[int]]], read_only: bool, cached: bool
) -> None:
    """Rows 35 to 40, F. Each answer has a status of the standard's, and nothing else is touched."""
    disk = MemoryDisk(64 * 512, cached=cached)
    config = DriveConfig(path="/a/disk", read_only=read_only)
    guest = GuestBlk(mem_size=1 << 20, queue_size=256)
    device = BlkDevice(config, disk.opener())
    tail = guest.memory.slice((1 << 20) - 65536, 65536)
    tail[:] = b"\x3c" * 65536
    good = all(sum(map(len, r)) >= 16 and sum(w) for r, w in chains)

    async def main() -> None:
        async with device.lifespan():
            heads = [guest.put(readable, writable) for readable, writable in chains]
            if not good:
                await broken(device, guest)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(device.run, activation(*guest.queues))
                for head in heads:
                    answer = await guest.answer(head)
                    assert answer.status in (S_OK, S_IOERR, S_UNSUPP)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert tail == b"\x3c" * 65536
    if read_only:
        assert disk.data == bytes(disk.size)
    assert len(disk.data) == disk.size
