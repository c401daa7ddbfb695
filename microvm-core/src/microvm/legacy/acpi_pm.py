"""Power-off and reset of a hardware-reduced ACPI machine: three registers of a byte.

Source: ACPI 6.5, 4.8.3.6 Reset Register, 4.8.3.7 Sleep Control and Status Registers. The FADT
tells the guest where they are, and the DSDT's ``_S5`` which sleep type is power-off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from microvm.arch.x86_64.layout import ACPI_RESET_VALUE, ACPI_S5_SLP_TYP
from microvm.legacy.byte_device import ByteDevice

SLEEP_CONTROL: Final = 0
SLEEP_STATUS: Final = 1
RESET: Final = 2
REGISTER_COUNT: Final = 3
"""The size of the bus range."""

SLP_TYP_SHIFT: Final = 2
SLP_TYP_BITS: Final = 0x1C
SLP_EN: Final = 0x20
"""For writing only: reads as 0."""
WAK_STS: Final = 0x80
"""The machine has woken up. Written 1 to clear it."""


class AcpiPm(ByteDevice):
    """Sleep control, sleep status and reset.

    Args:
        power_off: Called when the guest enters S5.
        reset: Called when it writes the FADT's RESET_VALUE to the reset register.
    """

    def __init__(self, power_off: Callable[[], None], reset: Callable[[], None]) -> None:
        self._power_off = power_off
        self._reset = reset
        self._control = 0
        self._status = 0

    def read_byte(self, offset: int) -> int:
        return (self._control, self._status, 0)[offset]

    def write_byte(self, offset: int, value: int) -> None:
        (self._write_control, self._write_status, self._write_reset)[offset](value)

    def _write_control(self, value: int) -> None:
        self._control = value & SLP_TYP_BITS
        if not value & SLP_EN:
            return
        if self._control >> SLP_TYP_SHIFT == ACPI_S5_SLP_TYP:
            self._power_off()
        else:
            # A sleep that we don't have is over at once: the guest polls for this bit.
            self._status = WAK_STS

    def _write_status(self, value: int) -> None:
        self._status &= ~value

    def _write_reset(self, value: int) -> None:
        if value == ACPI_RESET_VALUE:
            self._reset()
