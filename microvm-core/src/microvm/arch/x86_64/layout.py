"""Where everything lies in an x86_64 guest: addresses, ports and interrupts of our choosing.

Guest physical memory, from below::

    0                  RAM: real-mode area, boot structures below 0x9fc00
    0x9fc00            MP table, in what a PC calls the extended BIOS data area
    0xa0000            nothing (a PC's VGA memory)
    0xe0000            ACPI tables, RSDP first, up to 1 MiB
    0x100000           RAM: kernel; initrd at the end of the first region
    0xc0000000         hole: devices, I/O APIC, local APICs, KVM's own pages
    0x100000000        RAM that did not fit below the hole

The boot structures' places are those that Firecracker made customary; each is read by the kernel
before it takes the memory for itself.
"""

from __future__ import annotations

from typing import Final

PAGE_BYTES: Final = 0x1000

# --- below 1 MiB -----------------------------------------------------------------------------

BOOT_GDT: Final = 0x500
"""Global descriptor table of the 64-bit and the PVH entry: four descriptors."""
BOOT_IDT: Final = 0x520
"""One empty entry: the kernel loads its own before it enables interrupts."""
PVH_START_INFO: Final = 0x6000
PVH_MODULES: Final = 0x6040
PVH_MEMMAP: Final = 0x6100
ZERO_PAGE: Final = 0x7000
"""struct boot_params, one page."""
BOOT_STACK: Final = 0x8FF0
PML4: Final = 0x9000
PDPT: Final = 0xA000
PAGE_DIRECTORY: Final = 0xB000
CMDLINE: Final = 0x20000
CMDLINE_BYTES: Final = 2048
"""Including the NUL byte: COMMAND_LINE_SIZE of Linux on x86."""
EBDA: Final = 0x9FC00
"""Usable low memory ends here, and the MP table begins."""
EBDA_END: Final = 0xA0000
ACPI_TABLES: Final = 0xE0000
"""The RSDP is searched from here to 1 MiB (ACPI 6.5, 5.2.5.1), in steps of 16 bytes."""
HIGH_MEMORY: Final = 0x10_0000
"""Where a kernel can begin."""

# --- RAM and the hole below 4 GiB ------------------------------------------------------------

HOLE_START: Final = 0xC000_0000
HOLE_END: Final = 0x1_0000_0000

BOOT_TIMER: Final = 0xC000_0000
"""Where Firecracker's guests write how far they have come."""
VIRTIO_MMIO_BASE: Final = 0xD000_0000
VIRTIO_MMIO_BYTES: Final = 0x1000
"""One page a device: its registers in the first 0x200 bytes."""
IO_APIC: Final = 0xFEC0_0000
LOCAL_APIC: Final = 0xFEE0_0000
KVM_TSS: Final = 0xFFFB_D000
"""Three pages that KVM wants on Intel for its real mode; with the page below them, its identity
map, they lie just under where a PC has its BIOS."""

# --- ports -----------------------------------------------------------------------------------

COM1: Final = 0x3F8
CMOS: Final = 0x70
I8042_DATA: Final = 0x60
I8042_COMMAND: Final = 0x64
RESET_CONTROL: Final = 0xCF9
"""Of Intel's chipsets; Linux's ``reboot=pci``."""
ACPI_PM: Final = 0x600
"""Sleep control, sleep status and reset of the hardware-reduced ACPI machine: three bytes."""
ACPI_S5_SLP_TYP: Final = 5
"""The sleep type that the DSDT's ``_S5`` names and the sleep control register takes: power off."""
ACPI_RESET_VALUE: Final = 1
"""The FADT's RESET_VALUE: what the reset register takes for a reset."""

# --- interrupts (global system interrupts, which are the I/O APIC's pins) ----------------------

IO_APIC_PINS: Final = 24
COM1_GSI: Final = 4
VIRTIO_GSIS: Final = (5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
"""0 is the timer, 1 the keyboard, 2 the cascade, 3 and 4 the serial ports, 8 the clock. A kernel
without ACPI knows those below 16 alone: ten devices."""
MAX_VIRTIO_DEVICES: Final = len(VIRTIO_GSIS)


def virtio_mmio_base(index: int) -> int:
    """Guest physical address of the registers of the machine's virtio device `index`."""
    return VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_BYTES


def ram_ranges(size: int) -> tuple[tuple[int, int], ...]:
    """The regions of `size` bytes of RAM: start and length, around the hole."""
    low = min(size, HOLE_START)
    if size == low:
        return ((0, low),)
    return ((0, low), (HOLE_END, size - low))
