"""Driver and device on two CPUs, in two processes over one memory: rows 30 and 31.

What a memory model does to the two can only be seen where they really run at once. Each goes to
sleep for good when nobody wakes it; a bound on each sleep turns that into a failure.
"""

import mmap
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from microvm.memory import GuestMemory, GuestRegion
from microvm.testing.queue_driver import FakeDoorbell, QueueDriver
from microvm.virtio.chain import ChainReader, ChainWriter
from microvm.virtio.features import RING_EVENT_IDX, RING_FEATURES
from microvm.virtio.queue import VirtQueue

MEMORY_BYTES = 1 << 20
REQUESTS = 20_000
ASLEEP_FOR_GOOD_MS = 20_000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's")


def shared_memory(memfd: int) -> GuestMemory:
    mapping = mmap.mmap(memfd, MEMORY_BYTES)
    return GuestMemory([GuestRegion(start=0, view=memoryview(mapping))])


def sleep_until_rung(eventfd: int, who: str) -> None:
    poll = select.poll()
    poll.register(eventfd, select.POLLIN)
    if not poll.poll(ASLEEP_FOR_GOOD_MS):
        raise AssertionError(f"The {who} sleeps for good: a wake-up was lost.")
    os.eventfd_read(eventfd)


class EventFdDoorbell(FakeDoorbell):
    """Rings the device in the other process."""

    def __init__(self, eventfd: int) -> None:
        super().__init__()
        self.eventfd = eventfd

    def ring(self) -> None:
        os.eventfd_write(self.eventfd, 1)


def drive(memfd: int, kick: int, call: int, features: int) -> None:
    """The guest's process: keeps 1 to 4 requests in flight, and checks each answer."""
    driver = QueueDriver(
        shared_memory(memfd), size=8, features=features, doorbell=EventFdDoorbell(kick)
    )
    # The rings are laid out: the device may begin.
    os.eventfd_write(kick, 1)
    sent = answered = 0
    expected: dict[int, bytes] = {}
    while answered < REQUESTS:
        while sent < REQUESTS and len(expected) <= sent % 4:
            data = sent.to_bytes(4, "big")
            expected[driver.add([data], [4])] = data[::-1]
            sent += 1
        driver.kick()
        used = driver.used()
        while not used:
            if not driver.want_interrupt():
                sleep_until_rung(call, "driver")
            used = driver.used()
        for one in used:
            assert one.data == expected.pop(one.head)
        answered += len(used)


def serve(queue: VirtQueue, kick: int, call: int) -> int:
    """The device's process: the loop of the queue's documentation, without trio."""
    done = 0
    while True:
        busy = True
        while busy:
            queue.disable_notification()
            for chain in queue.pop_all():
                reader, writer = ChainReader(chain), ChainWriter(chain)
                writer.write(reader.read(4)[::-1])
                queue.add_used(chain.head, writer.written)
                done += 1
            if queue.needs_notification():
                os.eventfd_write(call, 1)
            busy = queue.enable_notification()
        if done >= REQUESTS:
            return done
        sleep_until_rung(kick, "device")


@pytest.mark.parametrize(
    "features", [RING_FEATURES, RING_FEATURES & ~RING_EVENT_IDX], ids=["event_idx", "flags"]
)
def test_31_no_wake_up_is_lost_between_two_processes(features: int) -> None:
    memfd = os.memfd_create("guest-ram")
    kick, call = os.eventfd(0), os.eventfd(0)
    try:
        os.ftruncate(memfd, MEMORY_BYTES)
        arguments = [str(number) for number in (memfd, kick, call, features)]
        with subprocess.Popen(
            [sys.executable, str(Path(__file__)), *arguments], pass_fds=(memfd, kick, call)
        ) as guest:
            try:
                sleep_until_rung(kick, "device")
                memory = shared_memory(memfd)
                # The same memory and the same heap put the rings at the same place.
                layout = QueueDriver(size=8, features=features).layout
                done = serve(VirtQueue(memory, layout, features=features), kick, call)
                assert guest.wait(ASLEEP_FOR_GOOD_MS / 1000) == 0
            finally:
                guest.kill()
        assert done == REQUESTS
    finally:
        for fd in (memfd, kick, call):
            os.close(fd)


if __name__ == "__main__":
    drive(*map(int, sys.argv[1:]))
