"""What a machine counts: bounded, and nobody's fault ends who asks."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from microvm.abc import Activation, AttachedDevice, VirtioDevice
from microvm.metrics import MachineMetrics, device_counters
from microvm.virtio.counts import SignalCounts
from microvm.vmm.exit_counts import MAX_PLACES, ExitCounts, merged


class Counting(VirtioDevice):
    """A stranger's device, which counts as it likes."""

    def __init__(self, counted: Any) -> None:
        self._counted = counted

    @property
    def device_id(self) -> int:
        return 44

    @property
    def queue_max_sizes(self) -> tuple[int, ...]:
        return (1,)

    def counters(self) -> Mapping[str, int]:
        if isinstance(self._counted, Exception):
            raise self._counted
        counted: Mapping[str, int] = self._counted
        return counted

    async def run(self, activation: Activation) -> None:
        raise AssertionError


def counted(*values: Any) -> Mapping[str, Mapping[str, int]]:
    devices = [AttachedDevice(name="odd", device=Counting(value)) for value in values]
    return device_counters(devices, [SignalCounts(notifications=3) for _ in values])


def test_devices_are_told_apart_and_have_their_transports_counts_too() -> None:
    signals = {"notifications": 3, "interrupts": 0}
    assert counted({"requests": 1}, {}) == {"odd0": {"requests": 1, **signals}, "odd1": signals}


@pytest.mark.parametrize(
    "value", [RuntimeError("a bug"), None, 7, {"requests": None}, {"requests": "many"}]
)
def test_a_device_that_can_not_count_is_told_of_and_the_others_are_counted(value, caplog) -> None:
    told = counted(value, {"requests": 1})
    assert told["odd0"] == {"notifications": 3, "interrupts": 0}
    assert told["odd1"]["requests"] == 1
    assert "'odd' could not tell its counters" in caplog.text


def test_a_guest_that_leaves_everywhere_is_counted_within_bounds() -> None:
    vcpus = [ExitCounts() for _ in range(4)]
    for number, vcpu in enumerate(vcpus):
        for place in range(2 * MAX_PLACES):
            vcpu.add("mmio-read", number << 32 | place)
        vcpu.add("halt")
    for _ in range(3):
        vcpus[0].add("mmio-read", 5)
    exits = merged(vcpus)
    assert len(exits) <= MAX_PLACES
    assert sum(exits.values()) == 4 * (2 * MAX_PLACES + 1) + 3
    assert exits["mmio-read 0x5"] == 4
    assert next(iter(exits)) == "elsewhere"
    assert list(exits.values()) == sorted(exits.values(), reverse=True)
    json.dumps(MachineMetrics(exits=exits).to_json())
