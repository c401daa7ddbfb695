"""The real-time clock with its memory, behind an index and a data port: the host's time, in UTC.

Source: Motorola MC146818A Real-Time Clock Plus RAM, 1984, Address Map and Register Descriptions;
the century and the NMI bit are the PC's (IBM PC AT Technical Reference, 1984).

Linux reads it when it boots, and does so with care: not while an update is in progress, each value
twice until both agree. So UIP is never set, and a time once read stands still while the guest
goes on reading (`HOLD_S`). Answering all ones, as where there is nothing, costs a guest 40,000
exits while it waits for UIP to fall. What is written stays unheard: the host's clock is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from microvm.legacy.byte_device import ByteDevice

INDEX: Final = 0
DATA: Final = 1
PORT_COUNT: Final = 2
"""The size of the bus range."""

INDEX_BITS: Final = 0x7F
"""Bit 7 of the index port masks the NMI, of which there is none."""

REGISTER_A: Final = 0x0A
REGISTER_B: Final = 0x0B
REGISTER_C: Final = 0x0C
REGISTER_D: Final = 0x0D
CENTURY: Final = 0x32

A_32_KHZ_1024_HZ: Final = 0x26
"""Divider for a crystal of 32.768 kHz, interrupt rate 1024 Hz as a PC's BIOS leaves it; no UIP."""
B_24_HOURS: Final = 0x02
"""DM is clear: values are BCD. No interrupt is enabled."""
D_VALID: Final = 0x80
"""VRT: the battery is good."""

HOLD_S: Final = 0.1
"""How long a time that was read stands still: a whole reading, even by a guest with slow exits."""


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


_CONSTANT: Final = {
    REGISTER_A: A_32_KHZ_1024_HZ,
    REGISTER_B: B_24_HOURS,
    REGISTER_C: 0,
    REGISTER_D: D_VALID,
}

_TIME: Final[dict[int, Callable[[time.struct_time], int]]] = {
    0x00: lambda now: min(now.tm_sec, 59),
    0x02: lambda now: now.tm_min,
    0x04: lambda now: now.tm_hour,
    0x06: lambda now: (now.tm_wday + 1) % 7 + 1,
    0x07: lambda now: now.tm_mday,
    0x08: lambda now: now.tm_mon,
    0x09: lambda now: now.tm_year % 100,
    CENTURY: lambda now: now.tm_year // 100 % 100,
}
"""Seconds, minutes, hours, day of week (Sunday is 1), day of month, month, year, century."""


class CmosRtc(ByteDevice):
    """Ports 0x70 (index) and 0x71 (data).

    Args:
        clock: Seconds since 1970, UTC.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._index = REGISTER_D
        self._read_at = float("-inf")
        self._held = time.gmtime(0)

    def read_byte(self, offset: int) -> int:
        if offset == INDEX:
            return 0xFF  # for writing only
        constant = _CONSTANT.get(self._index)
        if constant is not None:
            return constant
        of_time = _TIME.get(self._index)
        # The rest is memory that a BIOS would have filled: alarm, equipment, sizes.
        return 0 if of_time is None else _bcd(of_time(self._now()))

    def write_byte(self, offset: int, value: int) -> None:
        if offset == INDEX:
            self._index = value & INDEX_BITS

    def _now(self) -> time.struct_time:
        now = self._clock()
        # Below 0 when the host's clock was set back.
        if not 0 <= now - self._read_at < HOLD_S:
            self._read_at = now
            self._held = time.gmtime(now)
        return self._held
