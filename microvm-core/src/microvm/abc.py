"""The interfaces that backends, devices and provisioners implement.

A plugin depends on this module and on values from `microvm.config`; core depends on nothing of
the plugin but what stands here. Who calls what, in order:

1. core asks a `BackendFactory` to `probe` and, when chosen, to `create` a `HostedPlatform`;
2. core asks each `DeviceFactory` for a `VirtioDevice` and holds its `lifespan` open;
3. core hands platform, devices and boot files to `HostedPlatform.start` as a `MachinePlan`;
4. the platform runs each device's `run` while the guest's driver has it in use;
5. each `Provisioner` opens its channels before the guest starts and yields a `Guest` after.

Everything async here is for trio and runs on the trio thread that entered the machine.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from pathlib import Path

    import trio
    from trio.abc import HalfCloseableStream, Listener

    from microvm.config import BootSource, MachineConfig
    from microvm.outcome import MachineOutcome
    from microvm.timeline import BootTimeline
    from microvm.virtio.queue import VirtQueue


class Capability(enum.StrEnum):
    """What a backend can do, declared as data and checked before boot."""

    OWN_KERNEL = "own-kernel"
    """Boots the kernel and initrd it is given."""
    VIRTIO_DEVICES = "virtio-devices"
    """Takes our virtio devices (which ones: `BackendFactory.virtio_ids`)."""
    OWN_CHANNELS = "own-channels"
    """Brings its own way to guest ports, in place of a vsock device."""
    PAUSE = "pause"
    CONSOLE = "console"
    """The guest's console can be read."""
    EXIT_COUNTS = "exit-counts"
    """Counts VM exits by kind."""


@attrs.frozen(kw_only=True)
class ProbeReport:
    """Whether a backend can run here and now, in words a person can act on."""

    backend: str
    usable: bool
    reason: str
    """One sentence: why it is usable, or why not."""
    remedy: str | None = None
    """What to do when it is not."""
    accelerated: bool = False
    """Whether guest code runs on the CPU itself rather than in software."""
    details: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    """Facts found on the way (versions, paths), for `doctor`."""


# --- devices -------------------------------------------------------------------------------


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

    def write_config(self, offset: int, data: bytes) -> None:
        """A write by the driver to the configuration space; what is read-only is ignored."""
        return

    def reset(self) -> None:
        """Forget what is held for the guest (open connections): its driver has, or is gone.

        Called while no `run` is under way; before each `run` but one that goes on after a
        pause, and once the guest is gone for good.
        """
        return

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Held open for the machine's whole life, around every `run`: listeners belong here."""
        yield

    @abstractmethod
    async def run(self, activation: Activation) -> None:
        """Serve the queues until cancelled.

        Raises:
            GuestError: the driver broke a rule. The transport marks the device as needing a
                reset (virtio 1.2, 2.1.1 DEVICE_NEEDS_RESET) where it can, and logs it once.
        """


# --- channels ------------------------------------------------------------------------------


class GuestChannels(ABC):
    """Byte streams between host and guest ports."""

    @abstractmethod
    async def connect(self, port: int) -> HalfCloseableStream:
        """Open a stream to a program that listens on a guest port.

        Waits for the guest's driver to be there; never for a listener.

        Raises:
            GuestRefused: nothing listens on that port.
            GuestGone: the device or machine is gone.
        """

    @abstractmethod
    def listen(self, port: int) -> Listener[HalfCloseableStream]:
        """Take the connections that the guest makes to the host's `port`, from now on.

        The listener's `accept` gives streams; closing it frees the port. Connections beyond
        a small backlog, and those to ports nobody listens on, are refused.

        Raises:
            ConfigError: the port is taken already.
        """


# --- platforms -----------------------------------------------------------------------------


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

    def console_tail(self) -> tuple[str, ...]:
        """The last console lines, control characters made visible; empty without a console."""
        return ()

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


# --- guests --------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class RunResult:
    """What a finished command left. A non-zero code is a result, not an error."""

    argv: tuple[str, ...]
    exit_code: int | None
    """0 to 255, or None when a signal ended the command."""
    signal: int | None
    """The guest's signal number, or None."""
    stdout: bytes
    stderr: bytes

    @property
    def success(self) -> bool:
        """Whether it exited with code 0."""
        return self.exit_code == 0

    @property
    def returncode(self) -> int:
        """The shell's view: the exit code, or 128 + the signal's number."""
        return self.exit_code if self.exit_code is not None else 128 + (self.signal or 0)


@attrs.frozen(kw_only=True)
class TtySize:
    """A terminal's size in character cells."""

    rows: int = 24
    cols: int = 80


class GuestProcess(ABC):
    """A command that runs in the guest, its streams open. Made by `Guest.spawn`."""

    stdin: trio.abc.SendStream
    """Closing it gives the command end-of-file; back-pressure reaches the sender."""
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream
    """Empty with a tty, where the command has one stream for both."""

    @abstractmethod
    async def wait(self) -> RunResult:
        """Wait for the end. `stdout` and `stderr` of the result are empty: you had the streams.

        Raises:
            GuestGone: the machine or its agent ended first; the command's end is unknown.
        """

    @abstractmethod
    async def send_signal(self, signal: int) -> None:
        """Send a signal (the guest's numbering) to the command's process group."""

    @abstractmethod
    async def resize(self, size: TtySize) -> None:
        """Tell a command with a tty its new window size."""


class Guest(ABC):
    """The guest as its user holds it: what a provisioner's agent can do."""

    @abstractmethod
    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes = b"",
        check: bool = False,
        max_output_bytes: int = 64 * 1024 * 1024,
    ) -> RunResult:
        """Run a command to its end and collect what it prints.

        Args:
            argv: Program and arguments; no shell is involved. The program is looked up on the
                guest's PATH.
            env: Variables added to the agent's own environment.
            cwd: Directory to start in; the default is ``/``.
            user: A user of the guest by name or number; the default is root.
            stdin: Bytes for standard input.
            check: Raise `CommandFailed` unless the exit code is 0.
            max_output_bytes: Bound on each of stdout and stderr; the guest is not trusted to
                stop by itself. Past it the command is killed and `GuestError` raised.

        Cancelling kills the command.

        Raises:
            CommandFailed: with `check`, on any end but exit code 0.
            GuestGone: the machine or its agent ended first.
            GuestError: the command could not be started (no such program, user or directory).
        """

    @abstractmethod
    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        tty: TtySize | None = None,
    ) -> AbstractAsyncContextManager[GuestProcess]:
        """Start a command and give its streams; leaving the block kills what still runs."""

    @abstractmethod
    async def ping(self) -> float:
        """Round trip to the agent in milliseconds."""

    @abstractmethod
    async def status(self) -> Mapping[str, Any]:
        """What the agent says of its guest: version, kernel, uptime, memory, commands."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Ask the guest to end itself. Returns when the agent has agreed; see `Machine.wait`."""


class Provisioner(ABC):
    """Brings something into the guest and a way to use it. `agent` is the first of them."""

    def boot_source(self, config: MachineConfig) -> BootSource | None:
        """The kernel and initrd this provisioner brings, when the user gave none.

        Quick and on the trio thread: it finds an image, it does not build one.

        Raises:
            ImageError: an image is needed and has not been built; the remedy says how.
        """
        return None

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """Words this provisioner needs on the kernel's command line."""
        return ()

    @abstractmethod
    def attach(self, channels: GuestChannels) -> AbstractAsyncContextManager[GuestLink]:
        """Open what must be open before the guest runs (a listener for its hello).

        Entered before the machine starts, left after it has ended.
        """


class GuestLink(ABC):
    """A provisioner's half of a machine: entered before boot, ready after it."""

    @abstractmethod
    async def wait_ready(self, timeline: BootTimeline) -> Guest | None:
        """Wait, without bound, until the guest has reported; core sets the bound.

        Returns the `Guest` if this provisioner is the one that runs commands. Marks `timeline`
        with ``kernel`` when the guest's first sign of life comes, ``agent`` when it is usable.
        """
