"""A running QEMU as a `RunningMachine`: the tasks that watch it, and what they make of it.

* each device's vhost-user connection is served;
* the console is read, for the hub and for the kernel's last words;
* standard error is read, for QEMU's own;
* the monitor is read, for events;
* the process is waited for, and its end, with all of the above, becomes the outcome.

Where the guest has come to its end and QEMU does not see it (halted CPUs, a kernel that stays in
its panic) we kill QEMU and remember why.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from microvm.abc import RunningMachine
from microvm.console import ConsoleRing
from microvm.console_signs import SignReader
from microvm.consoles.client import ConsoleDoor
from microvm.consoles.hub import ConsoleHub
from microvm.errors import BackendError, GuestGone
from microvm.metrics import device_counters
from microvm.virtio.counts import SignalCounts
from microvm.virtio.pause_notice import PauseNotice
from microvm_qemu._halted import all_halted
from microvm_qemu._monitor import Monitor
from microvm_qemu._outcome import Evidence, decide, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio.socket import SocketType

    from microvm.abc import AttachedDevice
    from microvm.metrics import DeviceCounters
    from microvm.outcome import MachineOutcome
    from microvm_qemu._process import HeldProcess
    from microvm_qemu._qmp import Event
    from microvm_qemu._wiring import Cables

log = logging.getLogger("microvm.qemu")

CHUNK_BYTES: Final = 64 * 1024
STDERR_BYTES: Final = 16 * 1024
"""A KVM that gives up makes QEMU print 3 KiB of registers."""

UNDO_WITHIN_S: Final = 2.0
"""For a QEMU that is told to go on since nobody waits for its pause any more."""
LAST_WORDS_WITHIN_S: Final = 1.0
"""For the readers to find the end of what QEMU left. They do at once, unless this process forked
in the wrong moment and its child holds QEMU's ends too."""

HALT_LOOKS: Final = 200
HALT_LOOK_EVERY_S: Final = 0.005
"""A kernel that says it halts has its CPUs halted within milliseconds."""

FAILED_STATES: Final = frozenset({"internal-error", "io-error", "guest-panicked"})
"""RunState values out of which a machine does not come (QEMU, qapi/run-state.json)."""


class QemuMachine(RunningMachine):
    """Made and run by `QemuPlatform.start`."""

    def __init__(self, process: HeldProcess, cables: Cables) -> None:
        self._process = process
        self._cables = cables
        self.pause_notice = PauseNotice()
        """What the devices' servers know of pauses: to them one looks like a driver's reset."""
        self._monitor = Monitor(trio.socket.from_stdlib_socket(cables.monitor))
        self._console = trio.socket.from_stdlib_socket(cables.console)
        # Fed and read on one thread: there is no way to go.
        self._hub = ConsoleHub(lambda call: call())
        self._door = ConsoleDoor(self._hub, self._type)
        self._typing = trio.Lock()
        self._devices: tuple[AttachedDevice, ...] = ()
        self._signals: tuple[SignalCounts, ...] = ()
        self._stderr = ConsoleRing(STDERR_BYTES)
        self._reader = SignReader()
        self._launched = trio.Event()
        self._runs = False
        self._ended = trio.Event()
        self._outcome: MachineOutcome | None = None
        self._evidence: Evidence | None = None
        # What becomes of `Evidence`, found out on the way:
        self._asked = False
        self._halted = False
        self._shutdown_cause: str | None = None
        self._failed_state: str | None = None
        self._failure: str | None = None

    # --- RunningMachine ------------------------------------------------------------------

    async def wait(self) -> MachineOutcome:
        """As `RunningMachine.wait`."""
        await self._ended.wait()
        assert self._outcome is not None
        return self._outcome

    async def kill(self) -> None:
        """As `RunningMachine.kill`. Takes a few milliseconds."""
        if not self._process.ended:
            self._asked = True
            self._process.kill()
        await self._process.wait()

    async def pause(self) -> None:
        """As `RunningMachine.pause`.

        One that is cancelled is undone.

        Raises:
            GuestGone: the machine has ended.
        """
        self.pause_notice.announce()
        try:
            await self._monitor.execute("stop")
        except trio.Cancelled:
            # It may have been heard; what comes next is heard after it.
            with trio.move_on_after(UNDO_WITHIN_S, shield=True), suppress(GuestGone, BackendError):
                await self._monitor.execute("cont")
            self.pause_notice.withdraw()
            raise
        except (GuestGone, BackendError):
            self.pause_notice.withdraw()
            raise

    async def resume(self) -> None:
        """As `RunningMachine.resume`.

        Raises:
            GuestGone: the machine has ended.
        """
        # What went on at the pause has ended by now; what ends from now on, its driver ends.
        self.pause_notice.withdraw()
        await self._monitor.execute("cont")

    def console_tail(self) -> tuple[str, ...]:
        """As `RunningMachine.console_tail`."""
        return self._hub.tail()

    async def open_console(self) -> trio.SocketStream:
        """As `RunningMachine.open_console`."""
        await trio.lowlevel.checkpoint()
        return self._door.open()

    def console_counters(self) -> Mapping[str, int]:
        """As `RunningMachine.console_counters`."""
        return self._hub.counters()

    def device_counters(self) -> DeviceCounters:
        """As `RunningMachine.device_counters`."""
        return device_counters(self._devices, self._signals)

    # --- for the platform ----------------------------------------------------------------

    async def run(self, devices: tuple[AttachedDevice, ...]) -> None:
        """Serve and watch until QEMU has ended; then the outcome stands."""
        self._devices = devices
        self._signals = tuple(SignalCounts() for _ in devices)
        async with trio.open_nursery() as consoles:
            self._door.serve_in(consoles)
            try:
                await self._watch()
            finally:
                self._door.finish()
            self.conclude()

    async def _watch(self) -> None:
        async with trio.open_nursery() as nursery:
            for index, (attached, counts) in enumerate(
                zip(self._devices, self._signals, strict=True)
            ):
                nursery.start_soon(self._serve, attached, index, counts)
            nursery.start_soon(self._read_console, nursery)
            nursery.start_soon(self._read_stderr)
            nursery.start_soon(self._read_monitor, nursery)
            nursery.start_soon(self._launch)
            await self._process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_WITHIN_S

    async def launched(self) -> None:
        """Wait until the machine is made and its guest runs.

        Raises:
            BackendError: QEMU ended before that; with its own words.
            ImageError: the same, because of the kernel or the initrd.
        """
        await self._launched.wait()
        if not self._runs:
            assert self._evidence is not None
            raise refusal(self._evidence)

    def conclude(self) -> None:
        """Decide how the machine ended, if that was not done. The process must have ended."""
        if self._outcome is not None:
            return
        self._door.finish()
        self._reader.finish()
        self._evidence = Evidence(
            returncode=self._process.returncode,
            asked=self._asked,
            halted=self._halted,
            shutdown_cause=self._shutdown_cause,
            failed_state=self._failed_state,
            failure=self._failure,
            signs=self._reader.signs,
            stderr=self._stderr.tail(),
        )
        self._outcome = decide(self._evidence, self._hub.tail())
        log.debug("QEMU %d: %s", self._process.pid, self._outcome.detail)
        self._ended.set()
        self._launched.set()

    # --- tasks ---------------------------------------------------------------------------

    async def _serve(self, attached: AttachedDevice, index: int, counts: SignalCounts) -> None:
        # QEMU takes 20 ms to come here: time to import in.
        from microvm.virtio.vhost_user import serve_vhost_user

        sock = await self._cables.device(index)
        try:
            await serve_vhost_user(sock, attached.device, counts, self.pause_notice)
        except BackendError as error:
            self._fail(f"The device {attached.name!r} lost its QEMU: {error.message}")

    async def _read_console(self, nursery: trio.Nursery) -> None:
        signs = self._reader.signs
        looking = False
        while data := await _receive(self._console):
            # On a busy host a guest may be at its end before the monitor's answer is read.
            self._runs = True
            self._hub.feed(data)
            self._reader.feed(data)
            if signs.hung:
                self._process.kill()
            if signs.halting and not looking:
                looking = True
                nursery.start_soon(self._end_if_halted)

    async def _type(self, data: bytes) -> None:
        """Send to the console's port; QEMU takes as much as the guest reads."""
        async with self._typing:
            try:
                while data:
                    data = data[await self._console.send(data) :]
            except (BrokenPipeError, ConnectionResetError):
                return  # the console's reader finds the end

    async def _read_stderr(self) -> None:
        stderr = trio.socket.from_stdlib_socket(self._cables.stderr)
        while data := await _receive(stderr):
            self._stderr.feed(data)

    async def _read_monitor(self, nursery: trio.Nursery) -> None:
        try:
            while (events := await self._monitor.receive()) is not None:
                for event in events:
                    self._take(event, nursery)
        except BackendError as error:
            self._fail(error.message)

    def _take(self, event: Event, nursery: trio.Nursery) -> None:
        match event.name, event.data.get("reason"):
            case "SHUTDOWN", str(cause):
                self._shutdown_cause = cause
            case "STOP", _:
                nursery.start_soon(self._end_if_failed)

    async def _launch(self) -> None:
        try:
            await self._monitor.begin()
        except GuestGone:
            return  # told by the process's end, with its exit code
        except BackendError as error:
            self._fail(error.message)
        else:
            self._runs = True
            self._launched.set()

    async def _end_if_halted(self) -> None:
        """The kernel has said that it halts: see that it does, and end what is left.

        A machine whose CPUs all wait for an interrupt with interrupts off has ended, but QEMU
        would keep it.
        """
        try:
            for _ in range(HALT_LOOKS):
                registers = await self._monitor.execute(
                    "human-monitor-command", **{"command-line": "info registers -a"}
                )
                if isinstance(registers, str) and all_halted(registers):
                    self._halted = True
                    self._process.kill()
                    return
                await trio.sleep(HALT_LOOK_EVERY_S)
        except (GuestGone, BackendError) as error:
            log.debug("can't look at the CPUs: %s", error)

    async def _end_if_failed(self) -> None:
        """The CPUs were stopped: by `pause`, or because they can't go on."""
        try:
            status = await self._monitor.execute("query-status")
        except (GuestGone, BackendError) as error:
            log.debug("can't ask for the state: %s", error)
            return
        state = status.get("status") if isinstance(status, dict) else None
        if state in FAILED_STATES:
            self._failed_state = state
            self._process.kill()

    def _fail(self, what: str) -> None:
        """End the machine for something that went wrong on this side of it."""
        if not self._process.ended and self._failure is None and not self._asked:
            self._failure = what
            self._process.kill()


async def _receive(sock: SocketType) -> bytes:
    """The next bytes; none once QEMU has gone."""
    try:
        return await sock.recv(CHUNK_BYTES)
    except ConnectionResetError:
        return b""
