"""What a machine has done so far, as plain values."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from microvm.abc import AttachedDevice
    from microvm.virtio.counts import SignalCounts

log = logging.getLogger("microvm")

DeviceCounters = Mapping[str, Mapping[str, int]]
"""Device to counter to value. Devices are named by their plugin and a number: ``blk0``."""


@attrs.frozen(kw_only=True)
class MachineMetrics:
    """Everything that is counted of one machine, at one moment."""

    devices: DeviceCounters = attrs.field(factory=dict, hash=False)
    """In the plan's order. ``notifications`` and ``interrupts`` are the transport's; the others
    the device's own."""
    exits: Mapping[str, int] = attrs.field(factory=dict, hash=False)
    """VM exits by kind and address, where the backend counts them."""
    console: Mapping[str, int] = attrs.field(factory=dict, hash=False)
    """``printed_bytes``, ``typed_bytes`` and ``dropped_bytes``: those that a reader of the console
    was too slow, or its disk too full, to take."""
    timing: Mapping[str, float] = attrs.field(factory=dict, hash=False)
    """The boot so far: phase to milliseconds."""

    def to_json(self) -> dict[str, Any]:
        """As JSON's types."""
        return {
            "devices": {name: dict(counters) for name, counters in self.devices.items()},
            "exits": dict(self.exits),
            "console": dict(self.console),
            "timing": {phase: round(ms, 3) for phase, ms in self.timing.items()},
        }


def device_names(plugins: Iterable[str]) -> tuple[str, ...]:
    """A name for each device of a plan, given those of their plugins: ``net0``, ``net1``."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for plugin in plugins:
        names.append(f"{plugin}{seen[plugin]}")
        seen[plugin] += 1
    return tuple(names)


def device_counters(
    devices: Sequence[AttachedDevice], signals: Sequence[SignalCounts]
) -> DeviceCounters:
    """What the devices and their transports count, given in the same order."""
    names = device_names(attached.name for attached in devices)
    return {
        name: {**_own_counters(attached), **counts.as_mapping()}
        for name, attached, counts in zip(names, devices, signals, strict=True)
    }


def _own_counters(attached: AttachedDevice) -> Mapping[str, int]:
    """The device's; a device that can't count must not end who asks."""
    try:
        counters = attached.device.counters()
        return {str(name): operator.index(value) for name, value in counters.items()}
    except Exception:
        log.exception("The device %r could not tell its counters.", attached.name)
        return {}
