"""The x86_64 machine: which devices it has, where, and what its kernel is told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.board import BoardDescription, VirtioSlot
from microvm.boot.x86.tables import write_board_tables
from microvm.config import MAX_CMDLINE_BYTES, ConfigProblem, ConsoleDevice
from microvm.legacy.acpi_pm import AcpiPm
from microvm.legacy.boot_timer import REGISTER_BYTES as BOOT_TIMER_BYTES
from microvm.legacy.boot_timer import BootTimer
from microvm.legacy.cmos import CmosRtc
from microvm.legacy.i8042 import I8042
from microvm.legacy.reset_control import ResetControl
from microvm.legacy.uart8250 import Uart8250
from microvm.virtio.mmio import VirtioMmioTransport
from microvm.virtio.mmio.registers import QUEUE_NOTIFY

if TYPE_CHECKING:
    from microvm._loop_calls import LoopCalls
    from microvm.abc import MachinePlan, VirtioDevice, Vm
    from microvm.bus import Bus
    from microvm.config import MachineConfig
    from microvm.memory import GuestMemory

CONSOLE_WORDS: Final = {
    ConsoleDevice.SERIAL: ("console=ttyS0",),
    # Until the console's driver is there, by the serial port, with hardly an exit where all is
    # quiet. Else nobody would see what was said by then, a panic's words among it: Linux prints its
    # log anew when the console comes to be, but before the driver would take it (virtio_console.c,
    # init_port_console: hvc_alloc comes before the port is in the list that put_chars looks in).
    ConsoleDevice.VIRTIO: ("console=hvc0", f"earlycon=uart8250,io,{layout.COM1:#x}"),
}
KERNEL_WORDS: Final = (
    # Errors still show, and so does everything from a panic on.
    "quiet",
    # By the keyboard controller, which every kernel can: an exit of its own, unlike a triple fault.
    "reboot=k",
    # A panic ends the machine at once; the console says that it was one.
    "panic=-1",
    "8250.nr_uarts=1",
    # There is none; without the word a kernel with a PCI driver searches by ports.
    "pci=off",
)


def kernel_words(config: MachineConfig) -> Sequence[str]:
    """What every guest on this board has to be told."""
    return (*CONSOLE_WORDS[config.console.device], *KERNEL_WORDS)


def device_words(count: int) -> Sequence[str]:
    """Where `count` virtio devices are, for kernels that have no ACPI.

    Linux, Documentation/admin-guide/kernel-parameters: ``virtio_mmio.device=``.
    """
    return [
        f"virtio_mmio.device=4K@{layout.virtio_mmio_base(index):#x}:{layout.VIRTIO_GSIS[index]}"
        for index in range(count)
    ]


def problems_with(plan: MachinePlan) -> list[ConfigProblem]:
    """What keeps this machine from being built on this board."""
    problems: list[ConfigProblem] = []
    if len(plan.devices) > layout.MAX_VIRTIO_DEVICES:
        problems.append(
            ConfigProblem(
                "devices",
                f"the machine has interrupts for {layout.MAX_VIRTIO_DEVICES} virtio devices, "
                f"not for {len(plan.devices)}.",
            )
        )
        return problems
    length = len(whole_cmdline(plan).encode())
    if length > MAX_CMDLINE_BYTES:
        problems.append(
            ConfigProblem(
                "cmdline",
                f"with the words for {len(plan.devices)} devices the kernel's command line is "
                f"{length} bytes; it takes {MAX_CMDLINE_BYTES}.",
            )
        )
    return problems


def whole_cmdline(plan: MachinePlan) -> str:
    """The plan's command line with the words for its devices, which the user's may override."""
    return " ".join([*device_words(len(plan.devices)), plan.cmdline])


@attrs.frozen(kw_only=True)
class BoardCallbacks:
    """What devices on the board set off. Called on vCPU threads."""

    output: Callable[[bytes], None]
    """The serial port has sent bytes."""
    input_room: Callable[[], None]
    """The serial port has room again for what it could not take."""
    power_off: Callable[[], None]
    reset: Callable[[], None]
    marked: Callable[[int], None]
    """The boot timer was written to; a few times at most."""


def add_legacy_devices(vm: Vm, ports: Bus, addresses: Bus, callbacks: BoardCallbacks) -> Uart8250:
    """Put the board's own devices on the buses; returns the serial port."""
    uart = Uart8250(callbacks.output, vm.irq_line(layout.COM1_GSI), callbacks.input_room)
    ports.insert(layout.COM1, 8, uart)
    ports.insert(layout.CMOS, 2, CmosRtc())
    i8042 = I8042(callbacks.reset)
    ports.insert(layout.I8042_DATA, 1, i8042.data)
    ports.insert(layout.I8042_COMMAND, 1, i8042.command)
    ports.insert(layout.RESET_CONTROL, 1, ResetControl(callbacks.reset))
    ports.insert(layout.ACPI_PM, 3, AcpiPm(callbacks.power_off, callbacks.reset))
    addresses.insert(layout.BOOT_TIMER, BOOT_TIMER_BYTES, BootTimer(callbacks.marked))
    return uart


def add_virtio_device(
    index: int, device: VirtioDevice, *, vm: Vm, bus: Bus, memory: GuestMemory, calls: LoopCalls
) -> VirtioMmioTransport:
    """Put the machine's virtio device `index` on the bus of addresses."""
    base = layout.virtio_mmio_base(index)
    transport = VirtioMmioTransport(
        device,
        memory=memory,
        irq=vm.irq_line(layout.VIRTIO_GSIS[index]),
        doorbells=[
            vm.doorbell(base + QUEUE_NOTIFY, queue) for queue in range(len(device.queue_max_sizes))
        ],
        calls=calls,
    )
    bus.insert(base, layout.VIRTIO_MMIO_BYTES, transport)
    return transport


def describe(memory: GuestMemory, *, vcpu_count: int, device_count: int) -> None:
    """Write the MP and ACPI tables."""
    write_board_tables(
        memory,
        BoardDescription(
            vcpu_count=vcpu_count,
            virtio=tuple(
                VirtioSlot(base=layout.virtio_mmio_base(index), gsi=layout.VIRTIO_GSIS[index])
                for index in range(device_count)
            ),
        ),
    )
