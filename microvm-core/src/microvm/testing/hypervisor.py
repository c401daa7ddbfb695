"""A hypervisor whose guests are scripts: what runs machines on vCPUs is tested on it.

A script is a generator, one a vCPU; each value that it yields is the next thing the guest does::

    def guest(vcpu: FakeVcpu) -> Script:
        value = yield PioRead(0x64, 1)           # what `complete_read` was given
        yield Store(0xD0000050, 0)               # rings a doorbell, or exits as MmioWrite
        yield AwaitIrq(5)                        # sleeps in `run` until line 5 is triggered
        yield PioWrite(0xE9, 1, value)
        yield Spin()                             # `jmp .` with interrupts off: only kicks end a run

    vm = FakeHypervisor(guest).create_vm(vcpu_count=1)

A script that returns has halted with interrupts off. One that raises does so out of `run`. A vCPU
without a script waits to be started, for ever.

The duties of a caller are asserted: a vCPU is used on its own thread, reads are completed before
the next run, a VM has one call at a time, from any thread, and its vCPUs are closed before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from errno import EEXIST
from typing import TYPE_CHECKING, Final

import attrs
import trio

from microvm.abc import GuestDoorbell, Hypervisor, IrqLine, Vcpu, Vm
from microvm.arch.x86_64.registers import (
    CONTROL_REGISTERS,
    GENERAL_REGISTERS,
    SEGMENT_REGISTERS,
    TABLE_REGISTERS,
    DescriptorTable,
    Segment,
)
from microvm.errors import HypervisorCallError
from microvm.exits import Interrupted, MmioRead, MmioWrite, PioRead, VcpuExit

if TYPE_CHECKING:
    from microvm.arch.x86_64.registers import RegisterValue
    from microvm.memory import GuestRegion


@attrs.frozen
class Store:
    """A 4-byte store to a guest address that may have a doorbell."""

    address: int
    value: int


@attrs.frozen
class AwaitIrq:
    """Halt until the interrupt line is triggered; several triggers count as one."""

    gsi: int


@attrs.frozen
class Spin:
    """Go round in circles, with interrupts off, for ever."""


Step = VcpuExit | Store | AwaitIrq | Spin
Script = Generator[Step, bytes, None]
ScriptOf = Callable[["FakeVcpu"], Script]

_INTERRUPTED: Final = Interrupted()
_EMPTY_SEGMENT: Final = Segment.from_descriptor(0, 0)


class FakeLine(IrqLine):
    """An interrupt line. `triggers` counts."""

    def __init__(self, changed: threading.Condition) -> None:
        self.triggers = 0
        self.pending = False
        self._changed = changed

    def trigger(self) -> None:
        with self._changed:
            self.triggers += 1
            self.pending = True
            self._changed.notify_all()


class FakeGuestDoorbell(GuestDoorbell):
    """A doorbell of a `FakeVm`. `rings` counts; those before the first `wait` are kept."""

    def __init__(self) -> None:
        self.rings = 0
        self._lock = threading.Lock()
        self._rung = False
        self._waiter: tuple[trio.lowlevel.TrioToken, trio.Event] | None = None

    def ring(self) -> None:
        with self._lock:
            self.rings += 1
            self._rung = True
            if self._waiter is not None:
                token, event = self._waiter
                token.run_sync_soon(event.set, idempotent=True)

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            with self._lock:
                if self._rung:
                    self._rung = False
                    return
                event = trio.Event()
                self._waiter = trio.lowlevel.current_trio_token(), event
            try:
                await event.wait()
            finally:
                with self._lock:
                    self._waiter = None


class FakeVcpu(Vcpu):
    """One virtual CPU. What happened to it stands in its attributes."""

    def __init__(self, vm: FakeVm, index: int, script: ScriptOf | None) -> None:
        self.vm = vm
        self.index = index
        self.code = b"\xf4"
        """What `code_at_instruction_pointer` answers."""
        self.kicks = 0
        self.runs = 0
        self.resumes = 0
        """Calls of `prepare_resume`."""
        self.closed = False
        self.thread = threading.get_ident()
        self._changed = vm.changed
        self._kicked = False
        self._registers: dict[str, RegisterValue] = {
            **dict.fromkeys((*GENERAL_REGISTERS, *CONTROL_REGISTERS), 0),
            **dict.fromkeys(SEGMENT_REGISTERS, _EMPTY_SEGMENT),
            **dict.fromkeys(TABLE_REGISTERS, DescriptorTable(base=0, limit=0)),
        }
        self._script = None if script is None else script(self)
        self._step: Step | None = None
        """What the script does and has not finished."""
        self._reading = 0
        """Bytes that `complete_read` owes."""
        self._data = b""
        """What the script's next step gets."""

    def registers(self) -> Mapping[str, RegisterValue]:
        self._check()
        return dict(self._registers)

    def set_registers(self, values: Mapping[str, RegisterValue]) -> None:
        self._check()
        for name in values:
            if name not in self._registers:
                raise ValueError(f"{name} is no register of this architecture.")
        self._registers.update(values)

    def run(self) -> VcpuExit:
        self._check()
        assert not self._reading, "The last exit was a read, and was not completed."
        self.runs += 1
        while True:
            with self._changed:
                if self._kicked:
                    self._kicked = False
                    return _INTERRUPTED
                if not self._can_go_on():
                    self._changed.wait()
                    continue
            # Outside of the lock: a script may trigger a line, or kick.
            exit_ = self._advance()
            if exit_ is not None:
                return exit_

    def _can_go_on(self) -> bool:
        """Whether the guest can take its next step now; consumes an interrupt it waited for."""
        if self._script is None or isinstance(self._step, Spin):
            return False
        if isinstance(self._step, AwaitIrq):
            line = self.vm.line(self._step.gsi)
            came, line.pending = line.pending, False
            return came
        return True

    def _advance(self) -> VcpuExit | None:
        assert self._script is not None
        data, self._data = self._data, b""
        try:
            step = self._script.send(data) if data else next(self._script)
        except StopIteration:
            self._script = self._step = None
            return None
        except BaseException:
            self._script = self._step = None
            raise
        self._step = step
        match step:
            case MmioRead(length=length):
                self._reading = length
            case PioRead(size=size, count=count):
                self._reading = size * count
            case Store(address=address, value=value):
                bell = self.vm.bells.get((address, value))
                if bell is None or self.vm.doorbells_exit:
                    return MmioWrite(address, value.to_bytes(4, "little"))
                bell.ring()
                return None
            case AwaitIrq() | Spin():
                return None
        return step

    def complete_read(self, data: bytes) -> None:
        self._check()
        if not self._reading or len(data) != self._reading:
            raise ValueError(f"{len(data)} bytes for a read of {self._reading}.")
        self._reading = 0
        self._data = bytes(data)

    def kick(self) -> None:
        with self._changed:
            self.kicks += 1
            self._kicked = True
            self._changed.notify_all()

    def is_halted_for_good(self) -> bool:
        self._check()
        return self._script is None

    def prepare_resume(self) -> None:
        self._check()
        self.resumes += 1

    def code_at_instruction_pointer(self) -> bytes:
        self._check()
        return self.code

    def close(self) -> None:
        assert threading.get_ident() == self.thread, "Closed on another thread than its own."
        self.closed = True
        if self._script is not None:
            self._script.close()
            self._script = None

    def _check(self) -> None:
        assert not self.closed, "Used after close."
        assert threading.get_ident() == self.thread, "Used on another thread than its own."


class FakeVm(Vm):
    """One virtual machine. What the engine has made of it stands in its attributes."""

    def __init__(self, hypervisor: FakeHypervisor, vcpu_count: int) -> None:
        self.vcpu_count = vcpu_count
        self.vcpus: dict[int, FakeVcpu] = {}
        self.regions: list[GuestRegion] = []
        self.lines: dict[int, FakeLine] = {}
        """By GSI; `line` makes those that are not there yet."""
        self.bells: dict[tuple[int, int], FakeGuestDoorbell] = {}
        """By address and value."""
        self.doorbells_exit = hypervisor.doorbells_exit
        self.closed = False
        self.changed = threading.Condition()
        self._hypervisor = hypervisor
        self._calling = threading.Lock()

    def map_memory(self, region: GuestRegion) -> None:
        with self._call("map_memory"):
            if any(old.start < region.end and region.start < old.end for old in self.regions):
                raise HypervisorCallError("fake_map_memory", EEXIST)
            self.regions.append(region)

    def unmap_memory(self, region: GuestRegion) -> None:
        with self._call("unmap_memory"):
            self.regions.remove(region)  # raises ValueError, as it should

    def create_vcpu(self, index: int) -> FakeVcpu:
        with self._call("create_vcpu"):
            if index in self.vcpus or not 0 <= index < self.vcpu_count:
                raise HypervisorCallError("fake_create_vcpu", EEXIST)
            scripts = self._hypervisor.scripts
            script = scripts[index] if index < len(scripts) else None
            self.vcpus[index] = vcpu = FakeVcpu(self, index, script)
            return vcpu

    def line(self, gsi: int) -> FakeLine:
        """The line of that number, made if need be."""
        # From any thread; setdefault alone is atomic.
        return self.lines.setdefault(gsi, FakeLine(self.changed))

    def irq_line(self, gsi: int) -> FakeLine:
        with self._call("irq_line"):
            return self.line(gsi)

    def doorbell(self, address: int, value: int) -> FakeGuestDoorbell:
        with self._call("doorbell"):
            if (address, value) in self.bells:
                raise HypervisorCallError("fake_doorbell", EEXIST)
            bell = self.bells[address, value] = FakeGuestDoorbell()
            return bell

    def close(self) -> None:
        for vcpu in self.vcpus.values():
            assert vcpu.closed, f"vCPU {vcpu.index} is still open."
        self.regions.clear()
        self.closed = True

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        assert not self.closed, "Used after close."
        assert self._calling.acquire(blocking=False), "Called while another call is under way."
        try:
            failure = self._hypervisor.failures.get(name)
            if failure is not None:
                raise failure
            yield
        finally:
            self._calling.release()


class FakeHypervisor(Hypervisor):
    """Runs scripts.

    Args:
        scripts: One a vCPU, by index. Each VM plays them from the beginning.
        max_vcpu_count: What it claims.
        doorbells_exit: Stores to doorbells arrive as `MmioWrite`, as on a hypervisor that can't
            ring them.
    """

    def __init__(
        self, *scripts: ScriptOf, max_vcpu_count: int = 8, doorbells_exit: bool = False
    ) -> None:
        self.scripts = scripts
        self.doorbells_exit = doorbells_exit
        self.vms: list[FakeVm] = []
        """Every VM that was created."""
        self.failures: dict[str, Exception] = {}
        """By method name (``create_vm``, ``create_vcpu``, ``map_memory`` ...): what it raises."""
        self._max_vcpu_count = max_vcpu_count

    @property
    def arch(self) -> str:
        return "x86_64"

    @property
    def max_vcpu_count(self) -> int:
        return self._max_vcpu_count

    def create_vm(self, *, vcpu_count: int) -> FakeVm:
        failure = self.failures.get("create_vm")
        if failure is not None:
            raise failure
        vm = FakeVm(self, vcpu_count)
        self.vms.append(vm)
        return vm
