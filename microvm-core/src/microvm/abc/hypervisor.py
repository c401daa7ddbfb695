"""Backends that hand out virtual CPUs: core brings memory, buses, devices and the boot.

The life of a VM: `Hypervisor.create_vm`, `Vm.map_memory` for each region, interrupt lines and
doorbells, then each vCPU is created *on the thread that will run it* and never leaves that
thread (Hypervisor.framework demands it). Only `Vcpu.kick` may be called from another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from microvm.abc.device import Doorbell, IrqLine

if TYPE_CHECKING:
    from microvm.arch.x86_64.registers import RegisterValue
    from microvm.config import MachineConfig
    from microvm.exits import VcpuExit
    from microvm.memory import GuestRegion


class GuestDoorbell(Doorbell):
    """A doorbell of a VM's memory: the hypervisor rings it, without an exit, where it can.

    `wait` is for the trio thread.
    """

    @abstractmethod
    def ring(self) -> None:
        """Ring it by hand: for stores that reached the bus after all. From any thread."""


class Vcpu(ABC):
    """One virtual CPU. Every method but `kick` is for the thread that created it."""

    @abstractmethod
    def registers(self) -> Mapping[str, RegisterValue]:
        """All registers, by their architectural names in lower case (``rip``, ``cr3``, ``cs``)."""

    @abstractmethod
    def set_registers(self, values: Mapping[str, RegisterValue]) -> None:
        """Set some registers; the others stay as they are.

        Raises:
            ValueError: a name that is no register of this architecture.
            HypervisorCallError: the hypervisor refused the values.
        """

    @abstractmethod
    def run(self) -> VcpuExit:
        """Run guest code until the host has to act, and say what it has to do.

        After `MmioRead` and `PioRead`, call `complete_read` before the next `run`. Releases the
        GIL while the guest runs. A CPU that waits for an interrupt, or to be started by another
        CPU, waits in here.

        Raises:
            HypervisorCallError: the call failed, for the host's own reasons.
        """

    @abstractmethod
    def complete_read(self, data: bytes) -> None:
        """Give the guest what it reads: as many bytes as the exit asked for.

        Raises:
            ValueError: the last exit was no read, or asked for another number of bytes.
        """

    @abstractmethod
    def kick(self) -> None:
        """Make a `run` that is under way, or else the next one, return `Interrupted` at once.

        From any thread, at any time; when the vCPU is closed nothing happens. Several kicks may
        be answered by one return.
        """

    @abstractmethod
    def is_halted_for_good(self) -> bool:
        """Whether no interrupt can make the CPU go on, but a reset or another CPU alone.

        It has halted with interrupts disabled, or was never started.
        """

    def prepare_resume(self) -> None:
        """Called between a pause and the `run` after it: tell the guest's clock that time stood.

        Optional: the default tells nobody.
        """
        return

    @abstractmethod
    def code_at_instruction_pointer(self) -> bytes:
        """Up to 16 bytes of code where the CPU stands, for error messages; empty if unknown."""

    @abstractmethod
    def close(self) -> None:
        """Give the vCPU back. May be called again."""


class Vm(ABC):
    """One virtual machine: memory, interrupts, vCPUs. For any thread, one call at a time."""

    @abstractmethod
    def map_memory(self, region: GuestRegion) -> None:
        """Let the guest see a region of RAM at its address.

        The VM keeps the region's memory alive until it is unmapped or the VM is closed.

        Raises:
            HypervisorCallError: it overlaps one that is mapped, or there are too many.
        """

    @abstractmethod
    def unmap_memory(self, region: GuestRegion) -> None:
        """Take a region away: accesses to it exit as MMIO from now on.

        Raises:
            ValueError: it is not mapped.
        """

    @abstractmethod
    def create_vcpu(self, index: int) -> Vcpu:
        """Create vCPU `index` on the calling thread. Number 0 boots, the others wait for it.

        Raises:
            HypervisorCallError: the hypervisor refused.
        """

    @abstractmethod
    def irq_line(self, gsi: int) -> IrqLine:
        """An edge-triggered interrupt line. `trigger` may be called from any thread.

        Args:
            gsi: Global system interrupt: the I/O APIC's pin on x86_64, the SPI on aarch64.
        """

    @abstractmethod
    def doorbell(self, address: int, value: int) -> GuestDoorbell:
        """A doorbell that a guest rings by a 4-byte store of `value` to guest address `address`.

        Where the hypervisor can, the store causes no exit; where it can't, it arrives at the
        bus, and whoever sits there calls `GuestDoorbell.ring`.
        """

    @abstractmethod
    def close(self) -> None:
        """Give everything back: lines, doorbells, memory. Every vCPU is closed by then.

        May be called again.
        """


class Hypervisor(ABC):
    """A backend that hands out virtual machines."""

    @property
    @abstractmethod
    def arch(self) -> str:
        """The guests' architecture as the kernel calls it: ``x86_64``, ``aarch64``."""

    @property
    @abstractmethod
    def max_vcpu_count(self) -> int:
        """How many vCPUs a VM can have."""

    @abstractmethod
    def create_vm(self, *, vcpu_count: int) -> Vm:
        """Create a VM that will have so many vCPUs, with the architecture's interrupt controller.

        Raises:
            BackendUnavailable: this host's hypervisor can't.
            HypervisorCallError: a call failed.
        """

    def kernel_cmdline(self, config: MachineConfig) -> Sequence[str]:
        """Words that guests need on their command line because of this hypervisor."""
        return ()
