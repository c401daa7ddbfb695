"""A serial port: the register file of an NS16550A, whose line is as fast as the guest.

Source: National Semiconductor, PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs,
1995, section 8.0 Registers; registers and bits have its names. What differs:

* Transmission takes no time: the transmitter holding register and the shift register are always
  empty (THRE, TEMT), and what is written is on the host before the guest's next instruction. The
  THR empty interrupt therefore follows each write, and each setting of ETBEI.
* Speed, word length and parity are kept for the guest to read, and mean nothing. There are no
  parity and framing errors, and no breaks.
* A PC's board gates the interrupt with OUT2. This one does not: who has set an IER bit wants it.
* The line is up for good: DCD, DSR and CTS are set outside of loopback.

The interrupt is an edge for each cause that begins to be pending, and one for each `feed`. Linux's
handler reads IIR until nothing is pending, so it can't miss one: what comes after it looked last
makes an edge of its own. A `feed` makes one whether or not data was there already, because that
handler gives up after 512 rounds, with data in the FIFO if it was fed faster than it could read.

Threads: `read`, `write` and `write_block` are called under the lock of the bus range, so one at a
time; `feed` is called from any other thread. What both use (the receiver FIFO and what follows
from it: pending causes, IER, FIFO control, MCR) is changed under `_lock`. Two paths go without,
because a guest that prints a byte takes each once: a write to THR uses the two registers that only
the bus side changes, and a read of LSR asks whether the FIFO holds something, which it either did
or did not, whatever `feed` does meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from microvm.legacy.byte_device import ByteDevice

if TYPE_CHECKING:
    from microvm.abc import IrqLine

REGISTER_COUNT: Final = 8
"""The size of the bus range."""

RBR: Final = 0
"""Receiver buffer (read)."""
THR: Final = 0
"""Transmitter holding register (write)."""
DLL: Final = 0
"""Divisor latch, low byte: in place of RBR and THR while LCR.DLAB is set."""
IER: Final = 1
"""Interrupt enable."""
DLM: Final = 1
"""Divisor latch, high byte: in place of IER while LCR.DLAB is set."""
IIR: Final = 2
"""Interrupt identification (read)."""
FCR: Final = 2
"""FIFO control (write)."""
LCR: Final = 3
"""Line control."""
MCR: Final = 4
"""Modem control."""
LSR: Final = 5
"""Line status."""
MSR: Final = 6
"""Modem status."""
SCR: Final = 7
"""Scratch."""

IER_ERBFI: Final = 0x01
"""Enable received data available interrupt."""
IER_ETBEI: Final = 0x02
"""Enable transmitter holding register empty interrupt."""
IER_ELSI: Final = 0x04
"""Enable receiver line status interrupt."""
IER_EDSSI: Final = 0x08
"""Enable modem status interrupt."""
IER_BITS: Final = 0x0F
"""The others are always clear (8.7)."""

IIR_NONE: Final = 0x01
"""No interrupt is pending."""
IIR_TIMEOUT: Final = 0x0C
"""Character timeout: data below the trigger level, and no more comes."""
IIR_FIFOS: Final = 0xC0
"""Set while the FIFOs are enabled."""
IIR_PRIORITY: Final = ((IER_ELSI, 0x06), (IER_ERBFI, 0x04), (IER_ETBEI, 0x02), (IER_EDSSI, 0x00))
"""Table IV, Interrupt Control Functions: causes, as their IER bits, and what IIR says of them."""

FCR_ENABLE: Final = 0x01
FCR_RCVR_RESET: Final = 0x02
FCR_TRIGGER_LEVELS: Final = (1, 4, 8, 14)
"""By bits 7:6: how many bytes there are when the interrupt is received data, not timeout."""

LCR_DLAB: Final = 0x80
"""Divisor latch access."""

MCR_DTR: Final = 0x01
MCR_RTS: Final = 0x02
MCR_OUT1: Final = 0x04
MCR_OUT2: Final = 0x08
MCR_LOOP: Final = 0x10
MCR_BITS: Final = 0x1F

LSR_DR: Final = 0x01
"""Data ready."""
LSR_OE: Final = 0x02
"""Overrun error."""
LSR_THRE: Final = 0x20
LSR_TEMT: Final = 0x40
LSR_IDLE: Final = LSR_THRE | LSR_TEMT

MSR_CTS: Final = 0x10
MSR_DSR: Final = 0x20
MSR_RI: Final = 0x40
MSR_DCD: Final = 0x80
MSR_LINE_UP: Final = MSR_CTS | MSR_DSR | MSR_DCD
MSR_BY_CHANGE: Final = MSR_CTS | MSR_DSR | MSR_DCD
"""Their delta bits, four below, are set by any change; that of RI by its end alone (TERI)."""
MSR_OF_MCR: Final = (
    (MCR_RTS, MSR_CTS),
    (MCR_DTR, MSR_DSR),
    (MCR_OUT1, MSR_RI),
    (MCR_OUT2, MSR_DCD),
)
"""8.6, Modem Control Register, bit 4: what each output is connected to in loopback."""

FIFO_BYTES: Final = 16
"""Of the receiver. Not more: Linux's autoconfig_16550a counts it through loopback, and knows a chip
that holds 64 by another name."""

_BYTES: Final = tuple(bytes((value,)) for value in range(256))


class Uart8250(ByteDevice):
    """An NS16550A. Its bus range has `REGISTER_COUNT` bytes.

    Args:
        output: Takes what the guest prints, a byte or, from `write_block`, many. Called on the
            vCPU's thread under the bus range's lock: it must not block. Nothing is kept here.
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
        self._divisor = [12, 0]
        self._ier = 0
        self._fifos = False
        self._trigger_level = FCR_TRIGGER_LEVELS[0]
        self._lcr = 0
        self._mcr = 0
        self._scr = 0
        self._deltas = 0
        self._overrun = False
        self._thr_emptied = False
        self._pending = 0
        """Causes, as their IER bits."""
        self._prints = True
        """Whether a write to THR is a byte of output: neither DLAB nor LOOP is set."""

    def feed(self, data: bytes) -> int:
        """Put bytes into the receiver, as many as it holds; answers how many. From any thread.

        Offer the rest when `on_room` is called.
        """
        with self._lock:
            capacity = FIFO_BYTES if self._fifos else 1
            room = 0 if self._mcr & MCR_LOOP else capacity - len(self._received)
            taken = data[:room]
            self._cut_short = len(taken) < len(data)
            self._received.extend(taken)
            if taken and self._ier & IER_ERBFI:
                self._pending |= IER_ERBFI
                self._irq.trigger()
        return len(taken)

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 1 and offset == THR and self._prints:
            self._output(_BYTES[value & 0xFF])
            if self._ier & IER_ETBEI:
                self._note_emptied()
        else:
            super().write(offset, size, value)

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """Many writes of `size` bytes each at `offset` (``rep outsb``), as `Bus.write_many` does.

        What is to be printed goes out in one piece.
        """
        if size == 1 and offset == THR and self._prints:
            self._output(data)
            if self._ier & IER_ETBEI:
                self._note_emptied()
            return
        for begin in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[begin : begin + size], "little"))

    def read_byte(self, offset: int) -> int:
        if offset == LSR:
            return self._read_lsr()
        if offset <= DLM and self._lcr & LCR_DLAB:
            return self._divisor[offset]
        return self._READS[offset](self)

    def write_byte(self, offset: int, value: int) -> None:
        if offset <= DLM and self._lcr & LCR_DLAB:
            self._divisor[offset] = value
        else:
            self._WRITES[offset](self, value)

    # --- registers, by offset: the tables stand below ---------------------------------------------

    def _read_rbr(self) -> int:
        with self._lock:
            value = self._received.popleft() if self._received else 0
            self._settle()
        self._offer_room()
        return value

    def _write_thr(self, value: int) -> None:
        if not self._mcr & MCR_LOOP:
            self._output(_BYTES[value])
        with self._lock:
            if self._mcr & MCR_LOOP:
                self._receive(value)
            self._thr_emptied = True
            self._settle()

    def _read_ier(self) -> int:
        return self._ier

    def _write_ier(self, value: int) -> None:
        with self._lock:
            # THR is empty, so that enabling its interrupt raises it. Linux tests for that
            # (serial8250_do_startup), and polls by a timer where it fails.
            if value & ~self._ier & IER_ETBEI:
                self._thr_emptied = True
            self._ier = value & IER_BITS
            self._settle()

    def _read_iir(self) -> int:
        with self._lock:
            pending = ((cause, code) for cause, code in IIR_PRIORITY if self._pending & cause)
            cause, code = next(pending, (0, IIR_NONE))
            if cause == IER_ERBFI and len(self._received) < self._trigger_level:
                code = IIR_TIMEOUT
            elif cause == IER_ETBEI:
                self._thr_emptied = False
                self._settle()
            return code | IIR_FIFOS if self._fifos else code

    def _write_fcr(self, value: int) -> None:
        with self._lock:
            enable = bool(value & FCR_ENABLE)
            # Changing between the modes clears the FIFO; the other bits count with FCR0 only (8.4).
            if enable != self._fifos or (enable and value & FCR_RCVR_RESET):
                self._received.clear()
            self._fifos = enable
            self._trigger_level = FCR_TRIGGER_LEVELS[value >> 6 if enable else 0]
            self._settle()
        self._offer_room()

    def _read_lcr(self) -> int:
        return self._lcr

    def _write_lcr(self, value: int) -> None:
        self._lcr = value
        self._prints = not (value & LCR_DLAB or self._mcr & MCR_LOOP)

    def _read_mcr(self) -> int:
        return self._mcr

    def _write_mcr(self, value: int) -> None:
        with self._lock:
            before = self._lines()
            self._mcr = value & MCR_BITS
            after = self._lines()
            moved = (before ^ after) & MSR_BY_CHANGE | before & ~after & MSR_RI
            self._deltas |= moved >> 4
            self._prints = not (self._lcr & LCR_DLAB or value & MCR_LOOP)
            self._settle()
        self._offer_room()

    def _read_lsr(self) -> int:
        status = LSR_IDLE | LSR_DR if self._received else LSR_IDLE
        if self._overrun:
            with self._lock:
                self._overrun = False
                self._settle()
            status |= LSR_OE
        return status

    def _read_msr(self) -> int:
        with self._lock:
            status = self._lines() | self._deltas
            self._deltas = 0
            self._settle()
        return status

    def _read_scr(self) -> int:
        return self._scr

    def _write_scr(self, value: int) -> None:
        self._scr = value

    def _ignore(self, value: int) -> None:
        """LSR is for the factory to write (8.3), MSR's delta bits for nobody."""

    _READS: Final[tuple[Callable[[Uart8250], int], ...]] = (
        _read_rbr,
        _read_ier,
        _read_iir,
        _read_lcr,
        _read_mcr,
        _read_lsr,
        _read_msr,
        _read_scr,
    )
    _WRITES: Final[tuple[Callable[[Uart8250, int], None], ...]] = (
        _write_thr,
        _write_ier,
        _write_fcr,
        _write_lcr,
        _write_mcr,
        _ignore,
        _ignore,
        _write_scr,
    )

    # --- what lies behind them --------------------------------------------------------------------

    def _lines(self) -> int:
        """The upper half of MSR."""
        if not self._mcr & MCR_LOOP:
            return MSR_LINE_UP
        return sum(line for output, line in MSR_OF_MCR if self._mcr & output)

    def _receive(self, value: int) -> None:
        """A byte arrives by loopback. `_lock` is held."""
        if len(self._received) < (FIFO_BYTES if self._fifos else 1):
            self._received.append(value)
            return
        self._overrun = True
        # A full FIFO is left alone, RBR on its own is written over (8.3, bit 1).
        if not self._fifos:
            self._received[0] = value

    def _note_emptied(self) -> None:
        with self._lock:
            self._thr_emptied = True
            self._settle()

    def _settle(self) -> None:
        """Find out what is pending, and interrupt for what was not. `_lock` is held."""
        causes = (
            (IER_ERBFI if self._received else 0)
            | (IER_ETBEI if self._thr_emptied else 0)
            | (IER_ELSI if self._overrun else 0)
            | (IER_EDSSI if self._deltas else 0)
        ) & self._ier
        begun = causes & ~self._pending
        self._pending = causes
        if begun:
            self._irq.trigger()

    def _offer_room(self) -> None:
        """Ask for more if `feed` had to leave some. `_lock` is free: `feed` may be called."""
        if self._cut_short and not self._received and not self._mcr & MCR_LOOP:
            self._cut_short = False
            self._on_room()
