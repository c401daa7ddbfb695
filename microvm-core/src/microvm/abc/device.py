"""Virtio devices, the signals between them and a guest's driver, and devices on a bus."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs

from microvm.errors import ConfigError

if TYPE_CHECKING:
    from trio.abc import HalfCloseableStream

    from microvm.memory import GuestMemory
    from microvm.virtio.queue import VirtQueue


Fact = int | float | str | bool | None
"""What a command's answer is made of."""


class Doorbell(ABC):
    """What the guest rings after it has put buffers into a virtqueue."""

    @abstractmethod
    async def wait(self) -> None:
        """Return once it has been rung since the last return. Spurious returns are allowed."""


class IrqLine(ABC):
    """How a device tells the guest's driver that it has used buffers."""

    @abstractmethod
    def trigger(self) -> None:
        """Interrupt the guest. Never blocks; several calls may arrive as one."""


@attrs.frozen(kw_only=True)
class ActiveQueue:
    """One virtqueue in use, with its two signals."""

    queue: VirtQueue
    doorbell: Doorbell
    irq: IrqLine

    def notify(self) -> None:
        """Interrupt the driver if it wants to be: call once after a batch of `add_used`."""
        if self.queue.needs_notification():
            self.irq.trigger()


@attrs.frozen(kw_only=True)
class Activation:
    """What a device gets at DRIVER_OK: the negotiated features and its queues, its own alone."""

    features: int
    queues: tuple[ActiveQueue, ...]
    """By queue index. A queue that the transport keeps to itself, or that the driver did not set
    up, has no entry behind the last one given (vhost-user keeps vsock's event queue)."""
    memory: GuestMemory
    """All of the guest's RAM. Buffers come with their chains; this is for a device whose driver
    speaks of memory by address (a balloon). Not to be kept beyond the run."""
    config_changed: Callable[[], None]
    """Call it when `read_config` has begun to answer something else: the driver is interrupted,
    and reads it anew (virtio 1.2, 2.5 Device Configuration Space, 4.2.2.1). On the trio thread;
    never blocks; several calls may arrive as one, and after the run it does nothing. What changed
    between two runs is told in the later one."""


class VirtioDevice(ABC):
    """A virtio device; it can't tell which transport it runs under.

    The transport owns the register file and the status dance. The device says what it offers,
    answers for its configuration space, and serves its queues in `run` from DRIVER_OK until
    that call is cancelled: the machine pauses, the driver resets the device, or the machine
    ends. After a pause `run` is called again and the guest knows of nothing; in the other two
    cases `reset` is called first. `run` is never called twice at once.
    """

    @property
    @abstractmethod
    def device_id(self) -> int:
        """Virtio device id (virtio 1.2, section 5 Device Types)."""

    @property
    @abstractmethod
    def queue_max_sizes(self) -> Sequence[int]:
        """One maximum queue size (a power of two) per virtqueue, in index order."""

    @property
    def features(self) -> int:
        """Device-type feature bits (0 to 23 and 50 up) offered to the driver.

        The transport and the ring add their own (VERSION_1, RING_INDIRECT_DESC,
        RING_EVENT_IDX).
        """
        return 0

    def read_config(self, offset: int, length: int) -> bytes:
        """The device configuration space at `offset`; the transport has checked no bounds.

        Returns exactly `length` bytes, zeros where the space has none.
        """
        return bytes(length)

    @property
    def always_writable(self) -> range:
        """Bytes of the configuration space that a guest may write before it has a driver.

        For an emergency output alone (virtio 1.2, 5.3.4 emerg_wr): what else is written before a
        driver is there is dropped.
        """
        return range(0)

    def write_config(self, offset: int, data: bytes) -> None:
        """A write by the driver to the configuration space; what is read-only is ignored."""
        return

    def reset(self) -> None:
        """Forget what is held for the guest (open connections): its driver has, or is gone.

        Called while no `run` is under way; before each `run` but one that goes on after a
        pause, and once the guest is gone for good.
        """
        return

    def counters(self) -> Mapping[str, int]:
        """What the device has done since it was made, by name: for people and their monitoring.

        Names in use: ``requests``, ``read_bytes``, ``written_bytes``, ``errors``, ``throttled``.
        The transport counts notifications and interrupts. For the trio thread.
        """
        return {}

    async def open_stream(self, name: str) -> HalfCloseableStream:
        """Open the stream that the device has by this name: a console's port.

        `Machine.open_device_stream` leads here, from whatever process; see `command`.

        Raises:
            ConfigError: there is none, or it is open already.
            GuestGone: the machine has ended.
        """
        raise ConfigError(
            f"This device has no stream {name!r}.",
            remedy="What a device has is in its documentation, and depends on its options.",
        )

    async def command(self, what: str, arguments: Mapping[str, Any]) -> Mapping[str, Fact]:
        """Do what only a device of this kind can (set a balloon's target); what came of it.

        `Machine.device_command` leads here, also where the device is in a worker process, and so
        do the command line and other programs: arguments are of JSON's types and not to be
        trusted. For the trio thread; may be cancelled.

        Raises:
            ConfigError: the device knows no such command, or not with these arguments.
            GuestError: the guest does not do its part.
        """
        raise ConfigError(
            f"This device has no command {what!r}.",
            remedy="What a device can do is in its documentation.",
        )

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Held open for the machine's whole life, around every `run`: listeners belong here.

        No driver reads the configuration space before it has begun: one that is earlier waits.
        What comes before is `features` and the queues' sizes.
        """
        yield

    @abstractmethod
    async def run(self, activation: Activation) -> None:
        """Serve the queues until cancelled.

        Raises:
            GuestError: the driver broke a rule. The transport marks the device as needing a
                reset (virtio 1.2, 2.1.1 DEVICE_NEEDS_RESET) where it can, and logs it once.
        """


class BusDevice(ABC):
    """Registers at a range of guest addresses: called by the vCPUs' threads, one at a time.

    The bus has checked that the whole access lies in the device's range, and holds the range's
    lock during the call. A guest chooses offset, size and value: whatever it chooses, a device
    answers at once and raises nothing.
    """

    @abstractmethod
    def read(self, offset: int, size: int) -> int:
        """What the guest reads: `size` (1, 2, 4 or 8) bytes at `offset`, as a little-endian int.

        Bits above the size are cut off by the bus.
        """

    @abstractmethod
    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `size` (1, 2, 4 or 8) bytes at `offset`."""
