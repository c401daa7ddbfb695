"""A byte by which a guest says how far it has come, as Firecracker's guests do.

A program of the guest writes one byte to the device's first address, 123 when it is ready (its
``/init`` maps ``/dev/mem`` for that). What the write means is the machine's to say: a phase of the
boot's timeline. Everything else is read as zeros and written to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from microvm.abc import BusDevice

REGISTER_BYTES: Final = 0x1000
"""The size of the bus range: a page, which is what a guest can map."""
READY: Final = 123
MAX_MARKS: Final = 16
"""How often a guest is listened to; it could go on for ever."""


class BootTimer(BusDevice):
    """Tells of bytes written to its first address.

    Args:
        marked: Called with the byte on the vCPU's thread, under the bus range's lock, at most
            `MAX_MARKS` times: it must not block.
    """

    def __init__(self, marked: Callable[[int], None]) -> None:
        self._marked = marked
        self._left = MAX_MARKS

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and self._left:
            self._left -= 1
            self._marked(value & 0xFF)
