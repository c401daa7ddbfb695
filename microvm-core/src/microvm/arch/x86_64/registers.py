"""x86_64 registers as values, by their names in lower case.

General registers, `rip`, `rflags`, `cr0` to `cr8`, `efer` and `apic_base` are ints; the segment
registers `cs ds es fs gs ss tr ldt` hold a `Segment`, `gdt` and `idt` a `DescriptorTable`.
"""

from __future__ import annotations

from typing import Final

import attrs

GENERAL_REGISTERS: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
)
CONTROL_REGISTERS: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
SEGMENT_REGISTERS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
TABLE_REGISTERS: Final = ("gdt", "idt")

RFLAGS_RESERVED: Final = 1 << 1
"""Always set (Intel SDM volume 1, 3.4.3 EFLAGS Register)."""
RFLAGS_IF: Final = 1 << 9
"""Maskable interrupts are taken."""

CR0_PE: Final = 1 << 0
CR0_ET: Final = 1 << 4
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
CR4_OSFXSR: Final = 1 << 9
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10


@attrs.frozen(kw_only=True)
class Segment:
    """A segment register with its hidden part (Intel SDM volume 3A, 3.4.5 Segment Descriptors)."""

    selector: int
    base: int
    limit: int
    """In bytes, whatever the granularity: a flat 4 GiB segment has 0xffffffff."""
    type: int
    """The 4-bit type field."""
    s: int
    """1: code or data; 0: system."""
    dpl: int
    present: int
    avl: int
    long: int
    """L: 64-bit code."""
    db: int
    """D/B: 32-bit."""
    granularity: int
    """G: the descriptor counts its limit in pages."""

    @classmethod
    def from_descriptor(cls, selector: int, descriptor: int) -> Segment:
        """What a CPU holds after loading `selector`, whose 8-byte descriptor this is."""
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        granularity = descriptor >> 55 & 1
        return cls(
            selector=selector,
            base=descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000,
            limit=limit << 12 | 0xFFF if granularity else limit,
            type=descriptor >> 40 & 0xF,
            s=descriptor >> 44 & 1,
            dpl=descriptor >> 45 & 3,
            present=descriptor >> 47 & 1,
            avl=descriptor >> 52 & 1,
            long=descriptor >> 53 & 1,
            db=descriptor >> 54 & 1,
            granularity=granularity,
        )


@attrs.frozen(kw_only=True)
class DescriptorTable:
    """GDTR or IDTR."""

    base: int
    limit: int
    """Size in bytes, less 1."""


RegisterValue = int | Segment | DescriptorTable
