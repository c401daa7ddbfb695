"""From an order to what the worker runs: its platform, its devices, its plan."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from microvm._assembly import make_again
from microvm.abc import MachinePlan
from microvm.timeline import BootTimeline

if TYPE_CHECKING:
    from microvm.abc import GuestChannels, HostedPlatform
    from microvm.plugins import PluginManager
    from microvm.worker.order import Order


class MarkedTimeline(BootTimeline):
    """A timeline that keeps when each phase ended, for the caller's own."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[str, int]] = []

    def mark(self, phase: str, *, at_ns: int | None = None) -> None:
        """As `BootTimeline.mark`."""
        super().mark(phase, at_ns=at_ns)
        self.marks.append((phase, time.monotonic_ns() if at_ns is None else at_ns))


@attrs.frozen(kw_only=True, eq=False)
class Built:
    """A machine with everything made and nothing started, as an `Assembly` is."""

    platform: HostedPlatform
    plan: MachinePlan
    channels: GuestChannels | None
    timeline: MarkedTimeline


def build(order: Order, plugins: PluginManager) -> Built:
    """Load and make what the order names; nothing of it is chosen here. Marks ``worker``.

    Raises:
        MicrovmError: this process finds other plugins than its caller did, or others' faults.
    """
    timeline = MarkedTimeline()
    platform, devices, channels = make_again(order.backend, order.config, plugins)
    plan = MachinePlan(
        config=order.config,
        kernel=order.kernel,
        initrd=order.initrd,
        cmdline=order.cmdline,
        devices=devices,
        timeline=timeline,
    )
    timeline.mark("worker")
    return Built(platform=platform, plan=plan, channels=channels, timeline=timeline)
