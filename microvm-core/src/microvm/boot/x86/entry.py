"""The two states in which a boot vCPU is handed over to a kernel.

Every general register is named: those that the protocols leave open are 0, not what a reset has
left in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from microvm.arch.x86_64 import layout
from microvm.arch.x86_64.registers import (
    CR0_ET,
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    GENERAL_REGISTERS,
    RFLAGS_RESERVED,
    RegisterValue,
)
from microvm.boot.x86 import gdt
from microvm.boot.x86.paging import write_page_tables

if TYPE_CHECKING:
    from microvm.memory import GuestMemory


def long_mode_entry(memory: GuestMemory, address: int) -> Mapping[str, RegisterValue]:
    """Prepare for a jump to `address` in 64-bit mode, the zero page in RSI.

    Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": long mode, paging with the
    memory concerned mapped to itself, flat segments, interrupts off. The protocol names no stack;
    that there is one is Firecracker's custom.
    """
    memory.write(layout.BOOT_GDT, gdt.gdt(code=gdt.CODE_64, tss=gdt.TSS_64))
    write_page_tables(memory)
    return {
        **_general(rip=address, rsi=layout.ZERO_PAGE, rsp=layout.BOOT_STACK, rbp=layout.BOOT_STACK),
        **gdt.segment_registers(code=gdt.CODE_64, tss=gdt.TSS_64),
        "cr0": CR0_PE | CR0_ET | CR0_PG,
        "cr3": layout.PML4,
        "cr4": CR4_PAE,
        "efer": EFER_LME | EFER_LMA,
    }


def pvh_entry(memory: GuestMemory, address: int) -> Mapping[str, RegisterValue]:
    """Prepare for a jump to `address` in 32-bit mode, the hvm_start_info in EBX.

    Xen, docs/misc/pvh.pandoc, "CPU initial state": protected mode without paging, flat 32-bit
    segments, a TSS of the least size, CR4 0, interrupts and tracing off. There is no stack.
    """
    memory.write(layout.BOOT_GDT, gdt.gdt(code=gdt.CODE_32, tss=gdt.TSS_32))
    return {
        **_general(rip=address, rbx=layout.PVH_START_INFO),
        **gdt.segment_registers(code=gdt.CODE_32, tss=gdt.TSS_32),
        "cr0": CR0_PE | CR0_ET,
        "cr3": 0,
        "cr4": 0,
        "efer": 0,
    }


def _general(**values: int) -> dict[str, RegisterValue]:
    return {**dict.fromkeys(GENERAL_REGISTERS, 0), "rflags": RFLAGS_RESERVED, **values}
