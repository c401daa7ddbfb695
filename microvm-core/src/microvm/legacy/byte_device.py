"""Eight-bit registers behind a bus that takes accesses of up to eight bytes."""

from __future__ import annotations

from abc import abstractmethod

from microvm.abc import BusDevice


class ByteDevice(BusDevice):
    """A device with registers of one byte each, at consecutive addresses.

    A wider access is several: a PC's bus controller splits it, lowest address first, for a device
    that answers with eight bits (IBM PC AT Technical Reference, 1984, I/O channel: -IO CS16). So
    whatever the width, all of it is handled, and nothing is read or written that the guest did
    not address.
    """

    @abstractmethod
    def read_byte(self, offset: int) -> int:
        """What the register at `offset` reads as, 0 to 255."""

    @abstractmethod
    def write_byte(self, offset: int, value: int) -> None:
        """The guest writes `value`, 0 to 255, to the register at `offset`."""

    def read(self, offset: int, size: int) -> int:
        if size == 1:
            return self.read_byte(offset)
        return sum(self.read_byte(offset + i) << 8 * i for i in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            self.write_byte(offset + i, value >> 8 * i & 0xFF)
