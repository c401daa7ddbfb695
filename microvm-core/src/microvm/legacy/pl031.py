"""A real-time clock for Arm boards: the register file of the PL031, on the host's seconds.

Source: Arm, PrimeCell Real Time Clock (PL031) Technical Reference Manual, DDI 0224, chapter 3
Programmers Model; registers and bits have its names. What differs:

* RTCCR can't be cleared: the clock always runs, as in every PL031 once it was enabled.
* The alarm is looked at when a register is accessed, and by `tick`, which whoever wants alarms in
  time calls once a second. Linux sets none unless a program asks for one.
* The interrupt is an edge each time that it begins to be pending.

Linux reads RTCDR as seconds since 1970, UTC; the counter wraps in 2106.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from microvm.abc import BusDevice
from microvm.legacy.primecell import identification

if TYPE_CHECKING:
    from microvm.abc import IrqLine

REGISTER_BYTES: Final = 0x1000
"""The size of the bus range."""

RTCDR: Final = 0x000
"""Data: the time (read only)."""
RTCMR: Final = 0x004
"""Match: the time of the alarm."""
RTCLR: Final = 0x008
"""Load: sets the time."""
RTCCR: Final = 0x00C
"""Control."""
RTCIMSC: Final = 0x010
"""Interrupt mask set or clear."""
RTCRIS: Final = 0x014
"""Raw interrupt status (read only)."""
RTCMIS: Final = 0x018
"""Masked interrupt status (read only)."""
RTCICR: Final = 0x01C
"""Interrupt clear (write only)."""

RTCCR_START: Final = 1
RTCINTR: Final = 1

_WORD: Final = 0xFFFF_FFFF
_IDENTIFICATION: Final = identification(part=0x031, designer=0x41, revision=1, configuration=0)
"""RTCPeriphID0-3 and RTCPCellID0-3 (3.3.9, 3.3.10): 31 10 14 00, 0D F0 05 B1."""


class Pl031(BusDevice):
    """A clock. Accesses of one, two and eight bytes see the register as four bytes do.

    `read` and `write` are called under the lock of the bus range, `tick` from any thread.

    Args:
        irq: Its interrupt line.
        clock: Seconds since 1970, UTC.
    """

    def __init__(self, irq: IrqLine, clock: Callable[[], float] = time.time) -> None:
        self._irq = irq
        self._clock = clock
        self._lock = threading.Lock()
        self._offset = 0
        self._loaded = 0
        self._match = 0
        self._mask = 0
        self._raw = 0
        self._looked_at: int | None = None

    def tick(self) -> None:
        """See whether it is time for the alarm. From any thread."""
        with self._lock:
            self._look()

    def read(self, offset: int, size: int) -> int:
        with self._lock:
            now = self._look()
            match offset:
                case 0x000:
                    return now
                case 0x004:
                    return self._match
                case 0x008:
                    return self._loaded
                case 0x00C:
                    return RTCCR_START
                case 0x010:
                    return self._mask
                case 0x014:
                    return self._raw
                case 0x018:
                    return self._raw & self._mask
                case _:
                    return _IDENTIFICATION.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        value &= _WORD
        with self._lock:
            now = self._look()
            if offset == RTCMR:
                self._match = value
                self._raise(value == now)
            elif offset == RTCLR:
                self._loaded = value
                self._offset = (self._offset + value - now) & _WORD
                self._looked_at = None
                self._look()
            elif offset == RTCIMSC:
                pending = self._raw & self._mask
                self._mask = value & RTCINTR
                if self._raw & self._mask and not pending:
                    self._irq.trigger()
            elif offset == RTCICR:
                self._raw &= ~value

    def _look(self) -> int:
        """The time; raises the interrupt if the alarm lies between the last look and now."""
        now = (int(self._clock()) + self._offset) & _WORD
        before = now if self._looked_at is None else self._looked_at
        self._looked_at = now
        # Behind `before`, up to now; a clock that was set back passes nothing.
        passed = (now - before) & _WORD
        if passed < 1 << 31:
            self._raise(0 < (self._match - before) & _WORD <= passed)
        return now

    def _raise(self, due: bool) -> None:
        if due and not self._raw:
            self._raw = RTCINTR
            if self._mask:
                self._irq.trigger()
