"""The kernels that core boots by itself: how they are recognised, loaded and entered.

Each protocol opens the kernel and the initrd once, believes what that one descriptor shows, and
reads straight into guest memory. What is wrong with a file is found before more than its headers
are read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from microvm.arch.x86_64 import layout
from microvm.boot.cmdline import cmdline_bytes
from microvm.boot.elf import is_x86_64_elf, parse_elf
from microvm.boot.files import open_boot_file
from microvm.boot.setup_header import HEADER_BYTES, is_bzimage, parse_setup_header
from microvm.boot.x86 import bzimage, elf, entry
from microvm.boot.x86.e820 import memory_map
from microvm.boot.x86.initrd import place_initrd, read_initrd
from microvm.boot.x86.paging import check_mapped
from microvm.boot.x86.placement import Span, low_ram_end
from microvm.boot.x86.pvh import write_start_info
from microvm.boot.x86.zero_page import zero_page
from microvm.plugins import BootProtocol

if TYPE_CHECKING:
    from microvm.abc import MachinePlan
    from microvm.arch.x86_64.registers import RegisterValue
    from microvm.memory import GuestMemory

log = logging.getLogger("microvm.boot")

MAX_CMDLINE = layout.CMDLINE_BYTES - 1


def recognise(head: bytes, arch: str) -> BootProtocol | None:
    """Core's own answer to the `microvm_boot_protocol` hook.

    Says what a file is by its head; whether it can be booted, its protocol finds out.
    """
    if arch != "x86_64":
        return None
    if is_x86_64_elf(head):
        return ELF
    return BZIMAGE if is_bzimage(head) else None


def load_elf(plan: MachinePlan, memory: GuestMemory) -> Mapping[str, RegisterValue]:
    """Load an uncompressed kernel; enter it at its PVH entry if it has one, else in 64-bit mode.

    PVH comes first since it is a contract: the note says where, and the ABI in what state. The
    64-bit entry of an ELF file is the kernel's own startup code, which follows no written
    protocol but has kept to that of a bzImage ever since.

    Raises:
        ImageError: kernel or initrd can't be used, or don't fit.
    """
    ram_end = low_ram_end(memory)
    with open_boot_file(plan.kernel, "kernel") as file:
        kernel = parse_elf(file.read_at, file.size)
        span = elf.place_elf(kernel, ram_end=ram_end)
        if kernel.pvh_entry is None:
            check_mapped(span)
        line = cmdline_bytes(plan.cmdline, MAX_CMDLINE)
        elf.read_elf(file, kernel, memory)
    initrd = _load_initrd(plan, memory, kernel=span, highest=layout.HOLE_START - 1)
    memory.write(layout.CMDLINE, line)
    ram = memory_map(memory.regions)
    if kernel.pvh_entry is not None:
        log.info("%s: PVH entry at %#x", plan.kernel, kernel.pvh_entry)
        write_start_info(memory, memory_map=ram, initrd=initrd)
        return entry.pvh_entry(memory, kernel.pvh_entry)
    log.info("%s: no PVH entry; 64-bit entry at %#x", plan.kernel, kernel.entry)
    memory.write(layout.ZERO_PAGE, zero_page(header=b"", memory_map=ram, initrd=initrd))
    return entry.long_mode_entry(memory, kernel.entry)


def load_bzimage(plan: MachinePlan, memory: GuestMemory) -> Mapping[str, RegisterValue]:
    """Load a kernel that unpacks itself, and enter it in 64-bit mode.

    Raises:
        ImageError: kernel or initrd can't be used, or don't fit.
    """
    ram_end = low_ram_end(memory)
    with open_boot_file(plan.kernel, "kernel") as file:
        header = parse_setup_header(file.read_at(0, HEADER_BYTES), file.size)
        span = bzimage.place_bzimage(header, ram_end=ram_end)
        line = cmdline_bytes(plan.cmdline, min(header.cmdline_size, MAX_CMDLINE))
        bzimage.read_bzimage(file, header, span, memory)
    initrd = _load_initrd(plan, memory, kernel=span, highest=header.initrd_addr_max)
    memory.write(layout.CMDLINE, line)
    ram = memory_map(memory.regions)
    memory.write(layout.ZERO_PAGE, zero_page(header=header.raw, memory_map=ram, initrd=initrd))
    address = span.start + bzimage.ENTRY_64
    log.info("%s: 64-bit entry at %#x", plan.kernel, address)
    return entry.long_mode_entry(memory, address)


def _load_initrd(
    plan: MachinePlan, memory: GuestMemory, *, kernel: Span, highest: int
) -> Span | None:
    if plan.initrd is None:
        return None
    with open_boot_file(plan.initrd, "initrd") as file:
        span = place_initrd(file.size, kernel=kernel, ram_end=low_ram_end(memory), highest=highest)
        read_initrd(file, span, memory)
    return span


ELF = BootProtocol(
    name="elf", summary="Uncompressed x86_64 kernel, by its PVH or 64-bit entry", load=load_elf
)
BZIMAGE = BootProtocol(
    name="bzimage", summary="Compressed x86_64 Linux, by its 64-bit entry", load=load_bzimage
)
