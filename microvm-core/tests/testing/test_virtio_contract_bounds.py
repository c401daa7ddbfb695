"""The contract's two bounds, proved: a device that holds the loop, and one that keeps memory.

Both do it for chains only that no driver of theirs makes, and the good device beside them passes.
"""

import inspect
import time

import pytest
import trio
import trio.lowlevel
from hypothesis import Phase, settings

from microvm.abc import ActiveQueue, VirtioDevice
from microvm.testing.virtio_contract import Request, VirtioDeviceContract
from microvm.testing.virtio_contract.bounds import MAX_GROWTH_BYTES, MAX_STEP_S
from microvm.virtio.chain import DescriptorChain

from .test_virtio_contract import HYPOTHESIS, QUESTION, Repeater, variants

ROOM = 16
"""In a request that a driver of theirs makes."""


def is_odd(chain: DescriptorChain) -> bool:
    """Whether no driver of theirs makes it."""
    return (chain.readable_len, chain.writable_len) != (len(QUESTION), ROOM)


@pytest.fixture(autouse=True)
def no_other_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host a second of CPU time is long: nobody may give the device up before."""
    monkeypatch.setattr("microvm.testing.virtio_contract.rig.BOUND_S", 400.0)
    for _, test in inspect.getmembers(VirtioDeviceContract, callable):
        found = getattr(test, HYPOTHESIS, None)
        if found is not None:  # one failure is enough, it need not be the smallest
            once = settings(found, phases=[Phase.generate], derandomize=True, max_examples=30)
            monkeypatch.setattr(test, HYPOTHESIS, once)


def spin(seconds: float) -> None:
    """Use the CPU for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class HoldsTheLoop(Repeater):
    held = False

    def answer(self, chain: DescriptorChain) -> int:
        if is_odd(chain) and not self.held:
            self.held = True
            spin(MAX_STEP_S * 1.1)
        return super().answer(chain)


class Keeps(Repeater):
    kept = b""

    def answer(self, chain: DescriptorChain) -> int:
        if is_odd(chain):
            self.kept = self.kept or bytes(MAX_GROWTH_BYTES)
        return super().answer(chain)


class WorksInSteps(Repeater):
    """As long as the one and as large as the other, but one step and one piece at a time."""

    worked = False

    async def serve_batch(self, active: ActiveQueue) -> None:
        for chain in active.queue.pop_all():
            if is_odd(chain) and not type(self).worked:
                type(self).worked = True
                for _ in range(2):
                    spin(MAX_STEP_S * 0.6)
                    assert bytes(MAX_GROWTH_BYTES * 3 // 4)
                    await trio.lowlevel.checkpoint()
            self.use(active, chain, self.answer(chain))


WHERE = (
    "test_row_24_buffers_in_the_rings_and_on_each_other_hurt_nobody_else",
    "test_whatever_is_in_the_rings_is_served_or_is_the_drivers_fault",
    "test_whatever_a_driver_sends_is_served_or_is_its_fault",
)


def play(device: type[VirtioDevice], name: str) -> None:
    class Contract(VirtioDeviceContract):
        def device(self) -> VirtioDevice:
            return device()

        def request(self) -> Request:
            return Request(queue=1, readable=(QUESTION,), writable=(ROOM,))

    for case in variants(name):
        getattr(Contract(), name)(**case)


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize(
    ("device", "words"), [(HoldsTheLoop, "without a checkpoint"), (Keeps, "Memory grew")]
)
def test_who_goes_beyond_a_bound_for_an_odd_chain_fails(
    device: type[VirtioDevice], words: str, name: str
) -> None:
    with pytest.raises(AssertionError, match=words):
        play(device, name)


@pytest.mark.parametrize("name", [WHERE[0], WHERE[-1]])
def test_who_stays_within_both_passes(name: str) -> None:
    WorksInSteps.worked = False
    play(WorksInSteps, name)
    assert WorksInSteps.worked
