"""What a machine has of its devices: each by name, its streams, and what only its kind can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microvm.config import Isolation
from microvm.errors import ConfigError, GuestGone
from microvm.metrics import device_names

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

    from microvm._assembly import Assembly
    from microvm.abc import AttachedDevice, RunningMachine, VirtioDevice
    from microvm.abc.device import Fact
    from microvm.config import MachineConfig
    from microvm.outcome import MachineOutcome


def device_called(name: str, devices: Sequence[AttachedDevice]) -> VirtioDevice:
    """The device by its name in `MachineMetrics.devices`.

    Raises:
        ConfigError: there is none.
    """
    by_name = dict(zip(device_names(d.name for d in devices), devices, strict=True))
    if name not in by_name:
        raise ConfigError(
            f"This machine has no device {name!r}; it has {', '.join(by_name) or 'none'}.",
            remedy="Give it one: MachineConfig.devices, or microvm run --device.",
        )
    return by_name[name].device


class DeviceVerbs(ABC):
    """The part of `Machine` that is about its devices."""

    config: MachineConfig

    @abstractmethod
    def _planned(self) -> Assembly:
        """The machine's plan; a `RuntimeError` before it is started."""

    @abstractmethod
    def _started(self) -> RunningMachine:
        """The machine on its platform; a `RuntimeError` before it is started."""

    @property
    @abstractmethod
    def outcome(self) -> MachineOutcome | None:
        """How it ended, or None while it runs."""

    def device(self, name: str) -> VirtioDevice:
        """A device by its name in `metrics` (``balloon0``), for what only its kind can do.

        Raises:
            ConfigError: there is no such device, or it is in a worker process.
        """
        if self._are_elsewhere:
            raise ConfigError(
                f"{name!r} can't be had: the machine's devices are in its worker process.",
                remedy="Use Machine.open_device_stream or Machine.device_command, or give "
                'MachineConfig isolation="inline" to have them here.',
            )
        return device_called(name, self._planned().plan.devices)

    async def open_device_stream(self, device: str, name: str) -> HalfCloseableStream:
        """A stream that a device has, such as a console's named port: ``"console0", "agent"``.

        Args:
            device: Its name in `metrics`.
            name: What the device calls the stream.

        Raises:
            ConfigError: there is no such device or stream, or it is open already.
            GuestGone: the machine has ended.
        """
        running = self._running_still()
        if self._are_elsewhere:
            return await running.open_device_stream(device, name)
        return await device_called(device, self._planned().plan.devices).open_stream(name)

    async def device_command(
        self, device: str, what: str, /, **arguments: Any
    ) -> Mapping[str, Fact]:
        """Have a device do what only its kind can: ``"balloon0", "target", mib=256``.

        Args:
            device: Its name in `metrics`.
            what: The command; its documentation is the device's.
            arguments: Of JSON's types.

        Raises:
            ConfigError: there is no such device or command.
            GuestError: the guest does not do its part.
            GuestGone: the machine has ended.
        """
        running = self._running_still()
        if self._are_elsewhere:
            return await running.device_command(device, what, arguments)
        return await device_called(device, self._planned().plan.devices).command(what, arguments)

    def _running_still(self) -> RunningMachine:
        """A device may wait for its guest, and would for one that is no more."""
        running = self._started()
        if self.outcome is not None:
            raise GuestGone(f"The machine has ended. {self.outcome.detail}")
        return running

    @property
    def _are_elsewhere(self) -> bool:
        return self.config.isolation is Isolation.PROCESS
