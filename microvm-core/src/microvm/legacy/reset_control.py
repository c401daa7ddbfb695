"""The reset control register of Intel's chipsets, a byte at port 0xCF9; Linux's ``reboot=pci``.

Source: Intel I/O Controller Hub 9 Datasheet, 13.7.5 RST_CNT - Reset Control Register. The range is
that byte alone: it lies within the double word of PCI configuration, 0xCF8, and an access to that
is none to this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from microvm.legacy.byte_device import ByteDevice

SYS_RST: Final = 0x02
"""Whether a reset is of the whole system, or of the processor."""
RST_CPU: Final = 0x04
"""Resets when it goes from 0 to 1. A reset clears it, so that every write of 1 is one."""
FULL_RST: Final = 0x08
"""Whether a reset of the whole system switches power off and on."""


class ResetControl(ByteDevice):
    """Port 0xCF9.

    Args:
        reset: Called for each reset, of whatever kind: to a virtual machine they are one.
    """

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._value = 0

    def read_byte(self, offset: int) -> int:
        return self._value

    def write_byte(self, offset: int, value: int) -> None:
        self._value = value & (SYS_RST | FULL_RST)
        if value & RST_CPU:
            self._reset()
