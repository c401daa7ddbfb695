"""A million requests between our device's half and a driver in C: rows 18, 30, 31, 32 and 34.

The driver (`ring_driver.c`) runs on another CPU, over the same memory, and is as quick as a
guest's. Both sides go to sleep whenever the rings allow it and wake each other only when the
other asks for it, so a notification withheld or a store seen too late is a sleep for good.
"""

import itertools
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from microvm.memory import GuestMemory, GuestRegion
from microvm.virtio.chain import ChainReader, ChainWriter, DescriptorChain
from microvm.virtio.features import RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1
from microvm.virtio.queue import QueueLayout, VirtQueue

MEMORY_BYTES = 1 << 20
SIZE = 128
LAYOUT = QueueLayout(size=SIZE, desc=0x1000, avail=0x3000, used=0x4000)
HEAP = 0x8000
REQUESTS = 250_000
"""In each of the four modes: every index wraps three times."""
LOST_MS = 10_000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd and eventfd are Linux's")


@attrs.frozen
class Guest:
    """The driver's process, and what is shared with it."""

    process: subprocess.Popen[str]
    memory: GuestMemory
    kick: int
    call: int


@contextmanager
def guest(program: Path, cpu: int, features: int, requests: int) -> Iterator[Guest]:
    memfd, kick, call = os.memfd_create("guest-ram"), os.eventfd(0), os.eventfd(0)
    try:
        os.ftruncate(memfd, MEMORY_BYTES)
        mapping = mmap.mmap(memfd, MEMORY_BYTES)
        event_idx, indirect = features & RING_EVENT_IDX, features & RING_INDIRECT_DESC
        numbers = (memfd, MEMORY_BYTES, kick, call, SIZE, LAYOUT.desc, LAYOUT.avail, LAYOUT.used)
        numbers += (HEAP, int(event_idx != 0), int(indirect != 0), requests)
        with subprocess.Popen(
            [program, *map(str, numbers)],
            pass_fds=(memfd, kick, call),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                os.sched_setaffinity(process.pid, {cpu})
                memory = GuestMemory([GuestRegion(start=0, view=memoryview(mapping))])
                yield Guest(process, memory, kick, call)
            finally:
                process.kill()
    finally:
        for fd in (memfd, kick, call):
            os.close(fd)


class Answerer:
    """The device: each question backwards, or the number of the request where nothing is asked."""

    def __init__(self, queue: VirtQueue, call: int) -> None:
        self.queue = queue
        self.call = call
        self.served = 0
        self.total = 0
        self.calls = 0

    def until_empty(self) -> None:
        """Take what there is, and leave the driver its will to ring."""
        while (chain := self.queue.pop()) is not None:
            self.answer(chain)
        self.notify()

    def silenced(self) -> None:
        """The loop of the queue's documentation."""
        busy = True
        while busy:
            self.queue.disable_notification()
            for chain in self.queue.pop_all():
                self.answer(chain)
            self.notify()
            busy = self.queue.enable_notification()

    def answer(self, chain: DescriptorChain) -> None:
        reader, writer = ChainReader(chain), ChainWriter(chain)
        question = reader.read(reader.remaining)
        self.total += int.from_bytes(question, "little")
        writer.write(question[::-1] or self.served.to_bytes(8, "little"))
        self.queue.add_used(chain.head, writer.written)
        self.served += 1

    def notify(self) -> None:
        if self.queue.needs_notification():
            self.calls += 1
            os.eventfd_write(self.call, 1)


def serve(guest: Guest, features: int, requests: int) -> Answerer:
    """The device's process, until all is served: one loop and the other, by turns."""
    device = Answerer(VirtQueue(guest.memory, LAYOUT, features=features), guest.call)
    poll = select.poll()
    poll.register(guest.kick, select.POLLIN)
    for loop in itertools.cycle((device.until_empty, device.silenced)):
        loop()
        if device.served == requests:
            return device
        if not poll.poll(LOST_MS):
            guest.process.kill()
            complaint = guest.process.communicate()[1]
            raise AssertionError(f"No ring after request {device.served}. {complaint}")
        os.eventfd_read(guest.kick)
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("indirect", [RING_INDIRECT_DESC, 0], ids=["indirect", "direct"])
@pytest.mark.parametrize("event_idx", [RING_EVENT_IDX, 0], ids=["event_idx", "flags"])
def test_31_a_million_requests_of_a_driver_in_c(
    compiled: Callable[[str], Path], other_cpu: int, event_idx: int, indirect: int
) -> None:
    features = VERSION_1 | event_idx | indirect
    with guest(compiled("ring_driver"), other_cpu, features, REQUESTS) as driver:
        device = serve(driver, features, REQUESTS)
        output, complaint = driver.process.communicate(timeout=LOST_MS / 1000)
    assert complaint == ""
    done, total, kicks, sleeps, cut_short = map(int, output.split())
    assert done == REQUESTS
    assert total == device.total & (1 << 64) - 1
    # It was by notifications, and both sides have been in time for the other's last moment.
    print(f"{kicks} kicks, {device.calls} calls, {sleeps} sleeps, {cut_short} cut short")
    assert kicks > 1000
    assert device.calls > 1000
    assert sleeps > 1000
