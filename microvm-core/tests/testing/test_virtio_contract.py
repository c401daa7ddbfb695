"""The contract of virtio devices, proved: a good one passes, each bad one fails a named test.

Each bad device is the good one with one mistake that a device's author makes.
"""

import inspect
import itertools
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
from hypothesis import Phase, settings

from microvm.abc import Activation, ActiveQueue, VirtioDevice
from microvm.errors import GuestError, QueueError
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm.testing.virtio_contract.rig import DeviceHangs
from microvm.virtio.chain import ChainReader, ChainWriter, DescriptorChain

HYPOTHESIS = "_hypothesis_internal_use_settings"
LENGTH = struct.Struct("<H")


class Repeater(VirtioDevice):
    """Answers a length and so many bytes with those bytes."""

    device_id = 42
    queue_max_sizes = (16, 16)
    features = 1 << 3

    def __init__(self) -> None:
        self.served = 0

    def read_config(self, offset: int, length: int) -> bytes:
        return b"config"[offset : offset + length].ljust(length, b"\0")

    def counters(self) -> dict[str, int]:
        return {"requests": self.served}

    async def run(self, activation: Activation) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for active in activation.queues:
                nursery.start_soon(self.serve, active)

    async def serve(self, active: ActiveQueue) -> None:
        while True:
            active.queue.disable_notification()
            await self.serve_batch(active)
            self.notify(active)
            await trio.lowlevel.checkpoint()
            if not active.queue.enable_notification():
                await active.doorbell.wait()

    async def serve_batch(self, active: ActiveQueue) -> None:
        for chain in active.queue.pop_all():
            self.use(active, chain, self.answer(chain))

    def use(self, active: ActiveQueue, chain: DescriptorChain, written: int) -> None:
        active.queue.add_used(chain.head, written)
        self.served += 1

    def notify(self, active: ActiveQueue) -> None:
        active.notify()

    def answer(self, chain: DescriptorChain) -> int:
        reader, writer = ChainReader(chain), ChainWriter(chain)
        (length,) = LENGTH.unpack(reader.read(LENGTH.size))
        if length > min(reader.remaining, writer.remaining):
            raise QueueError("There are not so many bytes, or no room for them.")
        for view in reader.views(length):
            writer.write(view)
        return writer.written


QUESTION = LENGTH.pack(9) + b"say again"


class TestRepeater(VirtioDeviceContract):
    """The good one."""

    def device(self) -> VirtioDevice:
        return Repeater()

    def request(self) -> Request:
        return Request(queue=1, readable=(QUESTION,), writable=(16,))


# --- mistakes ----------------------------------------------------------------------------------


class TakesTransportBits(Repeater):
    features = 1 << 32


class ShortConfig(Repeater):
    def read_config(self, offset: int, length: int) -> bytes:
        return b"config"[offset : offset + length]


class FussyConfig(Repeater):
    def write_config(self, offset: int, data: bytes) -> None:
        if offset > 6:
            raise ValueError("There is nothing there.")


class CountsDown(Repeater):
    def reset(self) -> None:
        self.served = 0


class LeaksDescriptors(Repeater):
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self.kept = os.pipe()
        yield


class SwallowsErrors(Repeater):
    async def serve(self, active: ActiveQueue) -> None:
        try:
            await super().serve(active)
        except GuestError:
            await trio.sleep_forever()


class TrustsContents(Repeater):
    def answer(self, chain: DescriptorChain) -> int:
        try:
            return super().answer(chain)
        except QueueError as error:
            raise ValueError(str(error)) from error


class ReadsTwice(Repeater):
    """Checks the length, and then goes by what stands there now."""

    def answer(self, chain: DescriptorChain) -> int:
        head = chain.readable[0] if chain.readable else memoryview(b"")
        if len(head) < 2 or LENGTH.unpack_from(head)[0] > len(head) - LENGTH.size:
            raise QueueError("Too long.")
        (data,) = struct.unpack_from(f"<{LENGTH.unpack_from(head)[0]}s", head, LENGTH.size)
        return ChainWriter(chain).write(data)


class AssumesFraming(Repeater):
    def answer(self, chain: DescriptorChain) -> int:
        if len(chain.readable) != 1 or len(chain.writable) != 1:
            raise QueueError("A request is two buffers.")
        return super().answer(chain)


class TakesAll(Repeater):
    def answer(self, chain: DescriptorChain) -> int:
        whole = b"".join(chain.readable) + bytes(chain.writable_len)
        assert len(whole) < 1 << 40
        return super().answer(chain)


class SaysMore(Repeater):
    def answer(self, chain: DescriptorChain) -> int:
        super().answer(chain)
        return chain.writable_len


class SaysLess(Repeater):
    def answer(self, chain: DescriptorChain) -> int:
        super().answer(chain)
        return 0


class NeverInterrupts(Repeater):
    def notify(self, active: ActiveQueue) -> None:
        active.queue.needs_notification()


class AlwaysInterrupts(Repeater):
    def notify(self, active: ActiveQueue) -> None:
        active.irq.trigger()


class Polls(Repeater):
    async def serve(self, active: ActiveQueue) -> None:
        while True:
            await self.serve_batch(active)
            self.notify(active)
            await trio.lowlevel.checkpoint()


class NeverYields(Repeater):
    async def serve(self, active: ActiveQueue) -> None:
        while True:
            await self.serve_batch(active)
            self.notify(active)
            if not active.queue.enable_notification():
                await active.doorbell.wait()


class AssumesQueues(Repeater):
    async def run(self, activation: Activation) -> None:
        assert len(activation.queues) == 2
        await super().run(activation)


class Returns(Repeater):
    async def run(self, activation: Activation) -> None:
        with trio.move_on_after(0):
            await super().run(activation)


class AnswersBackwards(Repeater):
    """Out of order, with a pause possible in between."""

    async def serve_batch(self, active: ActiveQueue) -> None:
        for chain in reversed(list(active.queue.pop_all())):
            await trio.lowlevel.checkpoint()
            self.use(active, chain, self.answer(chain))


class LosesOnCancel(Repeater):
    """Uses what it holds when it is cancelled, and had not answered."""

    async def serve_batch(self, active: ActiveQueue) -> None:
        for chain in active.queue.pop_all():
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                self.use(active, chain, 0)
                self.use(active, chain, 0)
                raise
            self.use(active, chain, self.answer(chain))


class Sulks(Repeater):
    """Once a driver was at fault, nothing goes any more."""

    sulking = False

    async def serve(self, active: ActiveQueue) -> None:
        if self.sulking:
            await trio.sleep_forever()
        try:
            await super().serve(active)
        except GuestError:
            self.sulking = True
            raise


class WritesLate(Repeater):
    """A task of its own goes on after the run."""

    async def run(self, activation: Activation) -> None:
        view = activation.memory.slice(0x800, 8)

        async def scribble() -> None:
            for number in itertools.count():
                view[number % 8] = number & 0xFF
                await trio.sleep(0.0005)

        trio.lowlevel.spawn_system_task(scribble)
        await super().run(activation)


class Loops(Repeater):
    """Looks for a buffer to answer into until there is one."""

    def answer(self, chain: DescriptorChain) -> int:
        while not chain.writable_len:
            pass
        return super().answer(chain)


MISTAKES = {
    TakesTransportBits: "test_it_names_its_type_its_features_and_its_queues",
    ShortConfig: "test_its_configuration_space_reads_as_long_as_was_asked_for",
    FussyConfig: "test_its_configuration_space_takes_any_write",
    CountsDown: "test_its_counters_are_whole_numbers_and_never_go_back",
    LeaksDescriptors: "test_making_one_takes_nothing_and_leaving_its_lifespan_gives_all_back",
    SwallowsErrors: "test_row_19_a_head_that_there_is_not_is_a_fault",
    TrustsContents: "test_whatever_a_driver_sends_is_served_or_is_its_fault",
    ReadsTwice: "test_row_29_what_changes_while_it_is_read_is_read_once",
    AssumesFraming: "test_a_request_may_be_cut_into_buffers_anywhere",
    TakesAll: "test_row_21_a_chain_of_4_gib_costs_no_memory",
    SaysMore: "test_row_34_the_used_length_is_what_was_written_and_nothing_lies_behind_it",
    SaysLess: "test_row_34_the_used_length_is_what_was_written_and_nothing_lies_behind_it",
    NeverInterrupts: "test_row_32_the_driver_is_interrupted_iff_it_wants_to_be",
    AlwaysInterrupts: "test_row_32_the_driver_is_interrupted_iff_it_wants_to_be",
    Polls: "test_an_idle_device_rests",
    NeverYields: "test_a_driver_that_offers_without_end_leaves_the_others_their_turn",
    AssumesQueues: "test_queues_that_the_driver_has_not_set_up_are_done_without",
    Returns: "test_an_idle_device_rests",
    AnswersBackwards: "test_a_pause_at_any_moment_loses_and_repeats_no_request",
    LosesOnCancel: "test_a_pause_at_any_moment_loses_and_repeats_no_request",
    Sulks: "test_after_a_drivers_fault_and_a_reset_it_serves_again",
    WritesLate: "test_row_33_after_a_reset_it_does_not_touch_the_guests_memory",
    Loops: "test_row_23_a_chain_that_holds_nothing_hangs_nobody",
}


def variants(name: str) -> Iterator[dict[str, object]]:
    """The arguments of a test's cases."""
    test = getattr(VirtioDeviceContract, name)
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    names = [mark.args[0] for mark in marks]
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        yield dict(zip(names, values, strict=True))


def fails(device: type[VirtioDevice], name: str) -> bool:
    class Contract(TestRepeater):
        def device(self) -> VirtioDevice:
            return device()

    for case in variants(name):
        try:
            getattr(Contract(), name)(**case)
        except (Exception, DeviceHangs, BaseExceptionGroup):
            return True
    return False


@pytest.fixture(autouse=True)
def short_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs here is to be found out soon."""
    monkeypatch.setattr("microvm.testing.virtio_contract.rig.BOUND_S", 4.0)
    for _, test in inspect.getmembers(VirtioDeviceContract, callable):
        found = getattr(test, HYPOTHESIS, None)
        if found is not None:  # one failure is enough, it need not be the smallest
            monkeypatch.setattr(test, HYPOTHESIS, settings(found, phases=[Phase.generate]))


@pytest.mark.parametrize(
    ("device", "name"), MISTAKES.items(), ids=[device.__name__ for device in MISTAKES]
)
@pytest.mark.filterwarnings("default::ResourceWarning")
def test_each_mistake_fails_the_test_that_is_about_it(
    device: type[VirtioDevice], name: str
) -> None:
    assert fails(device, name)
    assert not fails(Repeater, name)
    for fd in getattr(device, "kept", ()):
        os.close(fd)


def test_the_contract_has_a_test_for_each_row_that_is_any_devices() -> None:
    names = [name for name, _ in inspect.getmembers(VirtioDeviceContract, callable)]
    rows = {int(name.split("_")[2]) for name in names if name.startswith("test_row_")}
    assert rows == {17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 32, 33, 34}
