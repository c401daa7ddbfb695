"""Writing the tables that describe the machine, whatever kernel it boots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from microvm.arch.x86_64 import layout
from microvm.boot.x86.acpi import acpi_tables
from microvm.boot.x86.mptable import mp_table
from microvm.boot.x86.placement import BOOT_STRUCTURES

if TYPE_CHECKING:
    from microvm.arch.x86_64.board import BoardDescription
    from microvm.memory import GuestMemory

RSDP: Final = layout.ACPI_TABLES
"""Where kernels are told that the ACPI tables begin."""


def write_board_tables(memory: GuestMemory, board: BoardDescription) -> None:
    """Write MP and ACPI tables to their places, before the guest starts.

    A device that `board` does not have is not found by a kernel with ACPI.
    """
    for what, table in (("MP table", mp_table(board)), ("ACPI tables", acpi_tables(board))):
        place = BOOT_STRUCTURES[what]
        assert len(table) <= place.length, what  # the most that a BoardDescription can have fits
        memory.write(place.start, table)
