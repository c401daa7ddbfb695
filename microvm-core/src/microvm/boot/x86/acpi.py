"""The ACPI tables of a hardware-reduced machine: CPUs, devices, power-off and reset. Pure.

Source: ACPI 6.5, 5.2 ACPI System Description Tables and 4.1 Hardware-Reduced ACPI. The RSDP lies
at `layout.ACPI_TABLES`, the tables behind it. There is no FACS, nothing of the fixed hardware
(timer, buttons, general-purpose events), and no AML that runs: devices are values.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from microvm.arch.x86_64 import layout
from microvm.boot.x86 import aml
from microvm.boot.x86.checksum import with_checksum

if TYPE_CHECKING:
    from microvm.arch.x86_64.board import BoardDescription, VirtioSlot

OEM_ID: Final = b"MICROV"
OEM_TABLE_ID: Final = b"MICROVM "
CREATOR_ID: Final = b"MVM "
HYPERVISOR_ID: Final = b"MICROVM\0"

# --- FADT (5.2.9) ----------------------------------------------------------------------------

WBINVD: Final = 1 << 0
PWR_BUTTON: Final = 1 << 4
"""There is no power button of the fixed hardware."""
SLP_BUTTON: Final = 1 << 5
FIX_RTC: Final = 1 << 6
"""The clock's alarm is not in the fixed hardware."""
RESET_REG_SUP: Final = 1 << 10
HW_REDUCED_ACPI: Final = 1 << 20
FADT_FLAGS: Final = WBINVD | PWR_BUTTON | SLP_BUTTON | FIX_RTC | RESET_REG_SUP | HW_REDUCED_ACPI

VGA_NOT_PRESENT: Final = 1 << 2
IAPC_BOOT_ARCH: Final = VGA_NOT_PRESENT
"""Bit 1 is not set: a kernel need not look for an 8042 keyboard controller, which takes long. Nor
is bit 5, "CMOS RTC not present": there is one."""

SYSTEM_IO: Final = 1
BYTE_ACCESS: Final = 1

_TABLE_ALIGNMENT = 16


def acpi_tables(board: BoardDescription) -> bytes:
    """Every table, for `layout.ACPI_TABLES`, the RSDP first."""
    blob = bytearray(36)

    def add(table: bytes) -> int:
        blob.extend(bytes(-len(blob) % _TABLE_ALIGNMENT))
        address = layout.ACPI_TABLES + len(blob)
        blob.extend(table)
        return address

    dsdt_address = add(dsdt(board))
    fadt_address = add(fadt(dsdt_address))
    madt_address = add(madt(board))
    blob[:36] = rsdp(add(xsdt(fadt_address, madt_address)))
    return bytes(blob)


def rsdp(xsdt_address: int) -> bytes:
    """Root System Description Pointer (5.2.5.3): a checksum of 20 bytes and one of all."""
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, OEM_ID, 2, 0)
    return with_checksum(with_checksum(first, 8) + struct.pack("<IQB3x", 36, xsdt_address, 0), 32)


def xsdt(*tables: int) -> bytes:
    """Extended System Description Table (5.2.8)."""
    return _table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables))


def fadt(dsdt_address: int) -> bytes:
    """Fixed ACPI Description Table (5.2.9) of revision 6.5: 276 bytes.

    All that a hardware-reduced machine ignores is 0.
    """
    body = bytearray(276 - 36)

    def put(offset: int, form: str, *values: int | bytes) -> None:
        struct.pack_into(form, body, offset - 36, *values)

    put(109, "<H", IAPC_BOOT_ARCH)
    put(112, "<I", FADT_FLAGS)
    put(116, "12s", _io_register(layout.ACPI_PM + 2))  # RESET_REG
    put(128, "B", layout.ACPI_RESET_VALUE)
    put(131, "B", 5)  # minor version
    put(140, "<Q", dsdt_address)  # X_DSDT
    put(244, "12s", _io_register(layout.ACPI_PM))  # SLEEP_CONTROL_REG
    put(256, "12s", _io_register(layout.ACPI_PM + 1))  # SLEEP_STATUS_REG
    put(268, "8s", HYPERVISOR_ID)
    return _table(b"FACP", 6, bytes(body))


def madt(board: BoardDescription) -> bytes:
    """Multiple APIC Description Table (5.2.12): one I/O APIC from GSI 0 on, a local APIC a vCPU.

    PCAT_COMPAT is not set: a hardware-reduced machine has no 8259s that the kernel must silence.
    No interrupt is overridden: GSI n is pin n.
    """
    io_apic = struct.pack("<BBBxII", 1, 12, board.io_apic_id, layout.IO_APIC, 0)
    enabled = 1
    local_apics = (
        struct.pack("<BBBBI", 0, 8, uid, uid, enabled) for uid in range(board.vcpu_count)
    )
    body = struct.pack("<II", layout.LOCAL_APIC, 0) + io_apic + b"".join(local_apics)
    return _table(b"APIC", 6, body)


def dsdt(board: BoardDescription) -> bytes:
    """Differentiated System Description Table (5.2.11.1): the devices, and the way to power off."""
    devices = [_virtio(index, slot) for index, slot in enumerate(board.virtio)]
    devices.append(_clock())
    if board.has_com1:
        devices.append(_com1())
    sleep_type = aml.integer(layout.ACPI_S5_SLP_TYP)
    # 7.4.2.6: SLP_TYP for each of the two registers of the fixed hardware, of which the first
    # value is for SLEEP_CONTROL_REG; two are reserved.
    s5 = aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0))
    return _table(b"DSDT", 2, aml.scope("\\_SB", *devices) + aml.named("\\_S5", s5))


def _virtio(index: int, slot: VirtioSlot) -> bytes:
    """LNRO0005 is Linux's id for virtio-mmio (drivers/virtio/virtio_mmio.c)."""
    resources = aml.resource_template(
        aml.memory32_fixed(slot.base, layout.VIRTIO_MMIO_BYTES), aml.interrupt(slot.gsi)
    )
    return aml.device(
        f"V{index:03X}",
        aml.named("_HID", aml.string("LNRO0005")),
        aml.named("_UID", aml.integer(index)),
        aml.named("_CCA", aml.integer(1)),
        aml.named("_CRS", resources),
    )


def _com1() -> bytes:
    """PNP0501: a 16550A-compatible serial port."""
    resources = aml.resource_template(aml.io(layout.COM1, 8), aml.interrupt(layout.COM1_GSI))
    return aml.device(
        "COM1",
        aml.named("_HID", aml.eisa_id("PNP0501")),
        aml.named("_UID", aml.integer(1)),
        aml.named("_CRS", resources),
    )


def _clock() -> bytes:
    """PNP0B00: the clock in the CMOS RAM, without an interrupt.

    Without the device Linux takes the clock to have interrupt 8, which a hardware-reduced machine
    does not, and does without it.
    """
    return aml.device(
        "RTC",
        aml.named("_HID", aml.eisa_id("PNP0B00")),
        aml.named("_UID", aml.integer(0)),
        aml.named("_CRS", aml.resource_template(aml.io(layout.CMOS, 2))),
    )


def _io_register(port: int) -> bytes:
    """Generic Address Structure (5.2.3.2) of a byte-wide port."""
    return struct.pack("<BBBBQ", SYSTEM_IO, 8, 0, BYTE_ACCESS, port)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header (5.2.6)."""
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        36 + len(body),
        revision,
        0,  # checksum, to be filled in
        OEM_ID,
        OEM_TABLE_ID,
        1,
        CREATOR_ID,
        1,
    )
    return with_checksum(header + body, 9)
