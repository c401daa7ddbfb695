"""A serial port for Arm boards: the register file of Arm's PL011, as fast as the guest.

Source: Arm, PrimeCell UART (PL011) Technical Reference Manual, DDI 0183 (r1p5), chapter 3
Programmers Model; registers and bits have its names. What differs:

* Transmission takes no time: the transmit FIFO is always empty (TXFE), never full, and UARTFR.BUSY
  is never set. The transmit interrupt follows each write; it is not raised by enabling it, as in
  the original, since Linux writes a first byte by itself (pl011_start_tx).
* Speed, word length and parity are kept for the guest to read, and mean nothing. There are no
  parity, framing and break errors; an overrun happens in loopback alone, because `feed` takes no
  more than there is room for.
* What is received before the trigger level raises the receive timeout interrupt at once: no more
  comes for as long as the guest can tell.
* There is no DMA: UARTDMACR is kept. The line is up for good: DCD, DSR and CTS are set.
* UARTCR.UARTEN, TXE and RXE are kept and stop nothing: an early console prints before it enables.

The interrupt is an edge for each cause that begins to be pending and enabled, and one for each
`feed`; see `microvm.legacy.uart8250`, whose threads and locks are the same.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from microvm.abc import BusDevice
from microvm.legacy.primecell import identification

if TYPE_CHECKING:
    from microvm.abc import IrqLine

REGISTER_BYTES: Final = 0x1000
"""The size of the bus range."""

UARTDR: Final = 0x000
"""Data."""
UARTRSR: Final = 0x004
"""Receive status (read), error clear (write)."""
UARTFR: Final = 0x018
"""Flags (read only)."""
UARTILPR: Final = 0x020
UARTIBRD: Final = 0x024
UARTFBRD: Final = 0x028
UARTLCR_H: Final = 0x02C
"""Line control."""
UARTCR: Final = 0x030
"""Control."""
UARTIFLS: Final = 0x034
"""Interrupt FIFO level select."""
UARTIMSC: Final = 0x038
"""Interrupt mask set or clear."""
UARTRIS: Final = 0x03C
"""Raw interrupt status (read only)."""
UARTMIS: Final = 0x040
"""Masked interrupt status (read only)."""
UARTICR: Final = 0x044
"""Interrupt clear (write only)."""
UARTDMACR: Final = 0x048

DR_OE: Final = 0x800
RSR_OE: Final = 0x08

FR_CTS: Final = 0x001
FR_DSR: Final = 0x002
FR_DCD: Final = 0x004
FR_RXFE: Final = 0x010
FR_RXFF: Final = 0x040
FR_TXFE: Final = 0x080
FR_ALWAYS: Final = FR_CTS | FR_DSR | FR_DCD | FR_TXFE

LCR_H_FEN: Final = 0x10
"""FIFOs are enabled."""
CR_LBE: Final = 0x080
"""Loopback."""
CR_AT_RESET: Final = 0x300
"""TXE and RXE."""
IFLS_AT_RESET: Final = 0x12

INT_RX: Final = 0x010
INT_TX: Final = 0x020
INT_RT: Final = 0x040
INT_OE: Final = 0x400
INT_BITS: Final = 0x7FF

FIFO_BYTES: Final = 32
"""r1p5; 16 before."""
TRIGGER_EIGHTHS: Final = (1, 2, 4, 6, 7, 7, 7, 7)
"""By UARTIFLS.RXIFLSEL: how full the receive FIFO is when its interrupt is due; 5 to 7 are not
defined."""

_KEPT: Final[Mapping[int, tuple[int, int]]] = {
    UARTILPR: (0xFF, 0),
    UARTIBRD: (0xFFFF, 0),
    UARTFBRD: (0x3F, 0),
    UARTLCR_H: (0xFF, 0),
    UARTCR: (0xFF87, CR_AT_RESET),
    UARTIFLS: (0x3F, IFLS_AT_RESET),
    UARTIMSC: (INT_BITS, 0),
    UARTDMACR: (0x7, 0),
}
"""Registers that keep what is written: their bits, and their value after a reset (table 3-1)."""

_IDENTIFICATION: Final = identification(part=0x011, designer=0x41, revision=3, configuration=0)
"""11 10 34 00 (r1p5), 0D F0 05 B1."""
_BYTES: Final = tuple(bytes((value,)) for value in range(256))


class Pl011(BusDevice):
    """A PL011. An access of any width is one to the whole register: the bus masks what is read.

    Args:
        output: Takes what the guest prints. Called on the vCPU's thread under the bus range's lock:
            it must not block. Nothing is kept here.
        irq: The port's interrupt line.
        on_room: Called on the vCPU's thread when a `feed` took less than it was given and the
            receiver is empty again; it may call `feed`.
    """

    def __init__(
        self,
        output: Callable[[bytes], None],
        irq: IrqLine,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._output = output
        self._irq = irq
        self._on_room = on_room
        self._lock = threading.Lock()
        self._received: deque[int] = deque()
        self._cut_short = False
        self._kept = {offset: value for offset, (_, value) in _KEPT.items()}
        self._overrun = False
        self._raw = 0

    def feed(self, data: bytes) -> int:
        """Put bytes into the receiver, as many as it holds; answers how many. From any thread.

        Offer the rest when `on_room` is called.
        """
        with self._lock:
            room = 0 if self._kept[UARTCR] & CR_LBE else self._capacity() - len(self._received)
            taken = data[: max(room, 0)]
            self._cut_short = len(taken) < len(data)
            self._received.extend(taken)
            enabled = self._kept[UARTIMSC] & (INT_RX | INT_RT)
            pending = self._raw & enabled
            self._settle_receiver()
            # If a cause began, there was an edge.
            if taken and pending and not self._raw & enabled & ~pending:
                self._irq.trigger()
        return len(taken)

    def read(self, offset: int, size: int) -> int:
        if offset == UARTDR:
            return self._read_dr()
        with self._lock:
            match offset:
                case 0x018:  # UARTFR
                    return self._flags()
                case 0x004:  # UARTRSR
                    return RSR_OE if self._overrun else 0
                case 0x03C:  # UARTRIS
                    return self._raw
                case 0x040:  # UARTMIS
                    return self._raw & self._kept[UARTIMSC]
                case _:
                    return self._kept.get(offset, _IDENTIFICATION.get(offset, 0))

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == UARTDR:
            self._write_dr(value & 0xFF)
            return
        with self._lock:
            if offset == UARTRSR:
                self._overrun = False
            elif offset == UARTICR:
                self._raw &= ~value
            elif offset in _KEPT:
                self._keep(offset, value & _KEPT[offset][0])
        self._offer_room()

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """Many writes of `size` bytes each at `offset`, as `Bus.write_many` does."""
        for begin in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[begin : begin + size], "little"))

    # --- registers that do something --------------------------------------------------------------

    def _read_dr(self) -> int:
        with self._lock:
            value = self._received.popleft() if self._received else 0
            if self._overrun:
                value |= DR_OE
            self._settle_receiver()
        self._offer_room()
        return value

    def _write_dr(self, value: int) -> None:
        if not self._kept[UARTCR] & CR_LBE:
            self._output(_BYTES[value])
        with self._lock:
            if self._kept[UARTCR] & CR_LBE:
                self._receive(value)
            self._raise(INT_TX)

    def _flags(self) -> int:
        flags = FR_ALWAYS
        if not self._received:
            flags |= FR_RXFE
        if len(self._received) >= self._capacity():
            flags |= FR_RXFF
        return flags

    def _keep(self, offset: int, value: int) -> None:
        before = self._kept[offset]
        self._kept[offset] = value
        if offset == UARTLCR_H and (before ^ value) & LCR_H_FEN:
            self._received.clear()
        if offset == UARTIMSC:
            if self._raw & value & ~before:
                self._irq.trigger()
        else:
            self._settle_receiver()

    # --- what lies behind them --------------------------------------------------------------------

    def _capacity(self) -> int:
        return FIFO_BYTES if self._kept[UARTLCR_H] & LCR_H_FEN else 1

    def _receive(self, value: int) -> None:
        """A byte arrives by loopback. `_lock` is held."""
        if len(self._received) >= self._capacity():
            self._overrun = True
            self._raise(INT_OE)
            return
        self._received.append(value)
        self._settle_receiver()

    def _settle_receiver(self) -> None:
        """Received data is due at its level, and below it by timeout; neither without data."""
        fifos = self._kept[UARTLCR_H] & LCR_H_FEN
        eighths = TRIGGER_EIGHTHS[self._kept[UARTIFLS] >> 3 & 7]
        level = FIFO_BYTES * eighths // 8 if fifos else 1
        if not self._received:
            self._raw &= ~(INT_RX | INT_RT)
        elif len(self._received) >= level:
            self._raise(INT_RX)
        else:
            self._raw &= ~INT_RX
            self._raise(INT_RT)

    def _raise(self, cause: int) -> None:
        """A cause begins to be pending, or goes on to be. `_lock` is held."""
        begun = cause & ~self._raw
        self._raw |= cause
        if begun & self._kept[UARTIMSC]:
            self._irq.trigger()

    def _offer_room(self) -> None:
        """Ask for more if `feed` had to leave some. `_lock` is free: `feed` may be called."""
        if self._cut_short and not self._received and not self._kept[UARTCR] & CR_LBE:
            self._cut_short = False
            self._on_room()
