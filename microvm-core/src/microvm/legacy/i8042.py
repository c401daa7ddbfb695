"""The keyboard controller that is not there, but for the line by which it resets a PC.

A PC's software resets it through this chip, and Linux does with ``reboot=k``. All else that Linux
does with it is to look for a keyboard, and what that costs depends on the answers (i8042_init in
drivers/input/serio/i8042.c, kb_wait in arch/x86/kernel/reboot.c):

* A status of 0, which is an idle controller: each command that it then does not answer is waited
  for half a second.
* A controller that answers every command: a keyboard port is registered, and a driver goes
  looking for what may be on it, for seconds, in the background.
* All ones, as where there is nothing: i8042_controller_check reads 16 bytes, finds that there are
  still more, says "No controller found" and is done, in 33 exits and 0.8 ms. But IBF is set too,
  and ``reboot=k`` waits for that to clear through 65,536 reads.

So the answer is all ones with IBF clear: gone in 0.8 ms, and a reset at once. Commands need no
answers then, and this file no state. (With ACPI and a FADT whose IAPC_BOOT_ARCH has no 8042 bit,
Linux does not even look.)

Source: IBM PC AT Technical Reference, 1984, Keyboard Controller; Intel 8042 bits' names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from microvm.legacy.byte_device import ByteDevice

STATUS_IBF: Final = 0x02
"""Input buffer full: the controller has not taken the last command yet."""
STATUS: Final = 0xFF & ~STATUS_IBF

PULSE: Final = 0xF0
"""F0 to FF, Pulse Output Port: a clear bit among the lower four pulses that line low."""
PULSE_NOT_RESET: Final = 0x01
"""Output 0 is the processor's reset. Linux writes 0xFE."""


class I8042:
    """Ports 0x60 and 0x64: a bus range of one byte for each, since what lies between is not ours.

    Args:
        reset: Called for each reset that the guest asks for; Linux asks ten times.
    """

    def __init__(self, reset: Callable[[], None]) -> None:
        self.data: ByteDevice = _Data()
        """Port 0x60."""
        self.command: ByteDevice = _Command(reset)
        """Port 0x64: status when read, commands when written."""


class _Data(ByteDevice):
    def read_byte(self, offset: int) -> int:
        return 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        return


class _Command(ByteDevice):
    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def read_byte(self, offset: int) -> int:
        return STATUS

    def write_byte(self, offset: int, value: int) -> None:
        if value & (PULSE | PULSE_NOT_RESET) == PULSE:
            self._reset()
