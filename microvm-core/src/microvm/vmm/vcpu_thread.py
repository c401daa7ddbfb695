"""One vCPU and the thread it lives on.

The thread moves through these states, and obeys commands between any two exits::

    created --go--> running <--pause / resume--> paused
       |               |                            |
       +---------------+----------stop--------------+--> ended

A command is a function of the vCPU, put into a queue; a kick makes the guest leave for it. A
thread that is held (created, or paused) waits in that queue and needs none.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from microvm.abc import Vcpu
from microvm.errors import HypervisorCallError
from microvm.exits import (
    FailEntry,
    Halt,
    InternalError,
    Shutdown,
    SystemEvent,
    VcpuExit,
)
from microvm.vmm.end import End, EndKind, cpu_state_lines
from microvm.vmm.exit_counts import ExitCounts
from microvm.vmm.exit_path import ExitPath

if TYPE_CHECKING:
    from microvm.bus import Bus

log = logging.getLogger("microvm.vmm")

Command = Callable[[Vcpu], None]

SYSTEM_EVENTS: Final = {"shutdown": EndKind.POWER_OFF, "reset": EndKind.RESET}


class VcpuOwner(Protocol):
    """What a vCPU's thread tells of itself, from that thread."""

    def vcpu_created(self, index: int, error: BaseException | None) -> None:
        """The vCPU is there and waits for `VcpuThread.go`, or could not be created."""

    def end(self, end: End) -> None:
        """The machine can't go on."""

    def vcpu_ended(self, index: int) -> None:
        """The thread has given its vCPU back; it is about to end."""


class VcpuThread:
    """A vCPU's thread. Every method is for any thread but the vCPU's own.

    Args:
        index: Which vCPU.
        create: Called on the thread with the index, to create it.
        prepare: Called on the thread once the vCPU is there, to set its registers.
        memory: The bus of addresses that are no RAM.
        ports: The bus of ports; empty where the architecture has none.
        owner: Who is told.
    """

    def __init__(
        self,
        index: int,
        *,
        create: Callable[[int], Vcpu],
        prepare: Command,
        memory: Bus,
        ports: Bus,
        owner: VcpuOwner,
    ) -> None:
        self.index = index
        self.counts = ExitCounts()
        self._create = create
        self._prepare = prepare
        self._path = ExitPath(memory, ports, self.counts)
        self._owner = owner
        self._vcpu: Vcpu | None = None
        self._clock: int | None = None
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        # These two are the thread's own:
        self._held = True
        self._stopped = False
        self._thread = threading.Thread(
            target=self._live, name=f"microvm vCPU {index}", daemon=True
        )

    def start(self) -> None:
        """Start the thread; it creates its vCPU and waits.

        Raises:
            RuntimeError: the host has no thread left.
        """
        self._thread.start()

    def go(self) -> None:
        """Let the guest run."""
        self._commands.put(self._release)

    def pause(self, paused: Callable[[], None]) -> None:
        """Hold the guest; `paused` is called on the thread when it does.

        Raises:
            HypervisorCallError: it could not be kicked; the command waits for the next kick.
        """

        def hold(vcpu: Vcpu) -> None:
            self._held = True
            paused()

        self.command(hold)

    def resume(self) -> None:
        """Let a paused guest go on, or one yet to be held; its clock is told that time stood."""

        def go_on(vcpu: Vcpu) -> None:
            vcpu.prepare_resume()
            self._held = False

        self._commands.put(go_on)

    def stop(self) -> None:
        """End the thread, whatever the guest does."""
        self.command(self._stop)

    def command(self, command: Command) -> None:
        """Have the thread call `command` with its vCPU, between two exits.

        Raises:
            HypervisorCallError: it could not be kicked; the command waits for the next kick.
        """
        self._commands.put(command)
        vcpu = self._vcpu
        if vcpu is not None:
            vcpu.kick()

    def join(self) -> None:
        """Wait for the thread's end: after `VcpuOwner.vcpu_ended`, a matter of microseconds.

        Not while the interpreter ends: it has left its daemon threads where they were, none comes
        to its end any more, and CPython 3.13 would wait for ever.
        """
        if self._thread.ident is not None and not sys.is_finalizing():
            self._thread.join()

    def cpu_time_ns(self) -> int | None:
        """CPU time that thread and guest have used; None when the thread is not there."""
        if self._clock is None:
            return None
        try:
            return time.clock_gettime_ns(self._clock)
        except OSError:  # it has ended
            return None

    # --- on the thread -----------------------------------------------------------------------

    def _release(self, vcpu: Vcpu) -> None:
        self._held = False

    def _stop(self, vcpu: Vcpu) -> None:
        self._stopped = True

    def _live(self) -> None:
        # Here, where the thread is there for certain: of one that has ended, asking is undefined
        # (pthread_getcpuclockid(3)).
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            vcpu = self._create(self.index)
        except BaseException as error:
            self._owner.vcpu_created(self.index, error)
            self._owner.vcpu_ended(self.index)
            return
        try:
            try:
                self._prepare(vcpu)
                self._vcpu = vcpu
            except BaseException as error:
                self._owner.vcpu_created(self.index, error)
                return
            self._owner.vcpu_created(self.index, None)
            self._run(vcpu)
        except HypervisorCallError as error:
            self._owner.end(
                End(
                    kind=EndKind.HOST_ERROR,
                    what=f"vCPU {self.index}: {error.message}",
                    cpu_state=self._cpu_state(vcpu),
                )
            )
        except BaseException as error:
            # A bug of a bus device, or of ours. Nobody else would hear of it on this thread.
            log.exception("vCPU %d failed", self.index)
            self._owner.end(
                End(
                    kind=EndKind.HOST_ERROR,
                    what=f"vCPU {self.index} failed on the host's side: "
                    f"{type(error).__name__}: {error}",
                )
            )
        finally:
            self._vcpu = None
            try:
                vcpu.close()
            finally:  # the machine waits for this word
                self._owner.vcpu_ended(self.index)

    def _run(self, vcpu: Vcpu) -> None:
        while self._obey(vcpu):
            vcpu_exit = self._path.run(vcpu)
            end = None if vcpu_exit is None else self._end_of(vcpu, vcpu_exit)
            if end is not None:
                self._owner.end(end)
                self._held = True  # until `stop`, which follows

    def _obey(self, vcpu: Vcpu) -> bool:
        """Carry out what is commanded; whether the guest may run, or else the thread must end."""
        while not self._stopped:
            try:
                command = self._commands.get(block=self._held)
            except queue.Empty:
                return True
            command(vcpu)
        return False

    def _end_of(self, vcpu: Vcpu, vcpu_exit: VcpuExit) -> End | None:
        match vcpu_exit:
            case Halt():
                return None
            case SystemEvent(kind) if kind in SYSTEM_EVENTS:
                return End(kind=SYSTEM_EVENTS[kind])
            case Shutdown():
                return End(kind=EndKind.TRIPLE_FAULT, cpu_state=self._cpu_state(vcpu))
            case InternalError(suberror, what):
                return End(
                    kind=EndKind.INTERNAL_ERROR,
                    what=f"The hypervisor can't go on with vCPU {self.index}: {what} "
                    f"(suberror {suberror}).",
                    cpu_state=self._cpu_state(vcpu),
                )
            case FailEntry(reason):
                return End(
                    kind=EndKind.INTERNAL_ERROR,
                    what=f"The hardware refuses to run vCPU {self.index} as it is "
                    f"(reason {reason:#x}).",
                    cpu_state=self._cpu_state(vcpu),
                )
            case _:
                return End(
                    kind=EndKind.INTERNAL_ERROR,
                    what=f"vCPU {self.index} stopped for a reason not known here: {vcpu_exit}.",
                    cpu_state=self._cpu_state(vcpu),
                )

    def _cpu_state(self, vcpu: Vcpu) -> tuple[str, ...]:
        try:
            return cpu_state_lines(self.index, vcpu.registers(), vcpu.code_at_instruction_pointer())
        except HypervisorCallError as error:
            return (f"vCPU {self.index}: {error.message}",)
