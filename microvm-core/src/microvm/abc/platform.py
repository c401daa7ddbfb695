"""Backends that hand out running machines, and what every running machine can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import attrs

from microvm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from trio.abc import HalfCloseableStream

    from microvm.abc.channels import GuestChannels
    from microvm.abc.device import Fact, VirtioDevice
    from microvm.config import MachineConfig
    from microvm.metrics import DeviceCounters
    from microvm.outcome import MachineOutcome
    from microvm.timeline import BootTimeline


@attrs.frozen(kw_only=True)
class AttachedDevice:
    """A device of the plan and the name of the plugin it came from."""

    name: str
    device: VirtioDevice


@attrs.frozen(kw_only=True, eq=False)
class MachinePlan:
    """A machine with every choice made: what `HostedPlatform.start` turns into a running one.

    Two plans are equal only if they are one: each is for one machine.
    """

    config: MachineConfig
    kernel: Path
    initrd: Path | None
    cmdline: str
    """Whole, but for what a platform must add to make its own devices found."""
    devices: tuple[AttachedDevice, ...]
    timeline: BootTimeline


class RunningMachine(ABC):
    """A machine that a platform runs. Every method is for the trio thread."""

    @property
    def channels(self) -> GuestChannels | None:
        """The platform's own way to guest ports (`Capability.OWN_CHANNELS`), or None."""
        return None

    @abstractmethod
    async def wait(self) -> MachineOutcome:
        """Return when the machine has ended. May be called again, and by several tasks."""

    @abstractmethod
    async def kill(self) -> None:
        """End the machine at once, whatever the guest does; return when it is gone."""

    async def pause(self) -> None:
        """Stop the vCPUs (`Capability.PAUSE`)."""
        raise NotImplementedError

    async def resume(self) -> None:
        """Let the vCPUs go on (`Capability.PAUSE`)."""
        raise NotImplementedError

    async def press_power_button(self) -> None:
        """Press the guest's power button (`Capability.POWER_BUTTON`); what it does is its own."""
        raise NotImplementedError

    def console_tail(self) -> tuple[str, ...]:
        """The last console lines, control characters made visible; empty without a console."""
        return ()

    async def open_console(self) -> HalfCloseableStream:
        """A stream to the console (`Capability.CONSOLE`), both ways.

        What is read begins with the last that the guest printed. A reader that is too slow loses
        bytes, which are counted; nothing waits for it. What is written, the guest finds typed; the
        writer waits while the guest reads none. The stream ends behind the guest's last words; one
        that is opened when the machine has ended has these, and nothing else.

        Raises:
            GuestGone: nothing is left of the machine that knows them.
        """
        raise NotImplementedError

    def console_counters(self) -> Mapping[str, int]:
        """As `MachineMetrics.console`; empty without a console."""
        return {}

    def device_counters(self) -> DeviceCounters:
        """As `MachineMetrics.devices`; empty where the platform has devices of its own only."""
        return {}

    async def open_device_stream(self, device: str, name: str) -> HalfCloseableStream:
        """As `VirtioDevice.open_stream`, of a device of the plan that lives elsewhere."""
        raise ConfigError(
            f"This machine has no device {device!r}.", remedy="`microvm stats` names those it has."
        )

    async def device_command(
        self, device: str, what: str, arguments: Mapping[str, Any]
    ) -> Mapping[str, Fact]:
        """As `VirtioDevice.command`, of a device of the plan that lives elsewhere."""
        raise ConfigError(
            f"This machine has no device {device!r}.", remedy="`microvm stats` names those it has."
        )

    def exit_counts(self) -> Mapping[str, int]:
        """VM exits by kind (`Capability.EXIT_COUNTS`); empty where nobody counts."""
        return {}


class HostedPlatform(ABC):
    """A backend that hands out running machines."""

    @abstractmethod
    def start(self, plan: MachinePlan) -> AbstractAsyncContextManager[RunningMachine]:
        """Start the machine on entry; on exit, however it comes, leave nothing of it behind.

        Raises:
            BackendError: the host or the platform's program failed.
            ImageError: the kernel or initrd can't be used.
        """

    def prelaunch(self, plan: MachinePlan) -> AbstractContextManager[None]:
        """Begin what needs no trio loop; `start` with the same plan then goes on from there.

        For a program that has trio still to import and its own to set up: the platform's process
        may come up meanwhile. Leaving the block ends what no `start` has taken over. Optional:
        the default begins nothing. Raises as `start` does.
        """
        return nullcontext()

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """Words this platform's guests need on their command line (console, reboot method)."""
        return ()
