"""Linux's 8250 driver against our port: what it finds, and that it needs none of its workarounds.

The steps are those of drivers/tty/serial/8250/8250_port.c (Linux 6.x), under its functions' names.
"""

from __future__ import annotations

import pytest

from microvm.abc import IrqLine
from microvm.arch.x86_64.layout import COM1
from microvm.bus import Bus
from microvm.legacy.uart8250 import REGISTER_COUNT, Uart8250

RX = TX = 0
IER = DLM = 1
IIR = FCR = EFR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7
CONF_MODE_A, CONF_MODE_B, WLEN8 = 0x80, 0xBF, 0x03
ENABLE_FIFO, CLEAR_RCVR, CLEAR_XMIT, SIZE_64 = 0x01, 0x02, 0x04, 0x20
RDI, THRI, RLSI = 0x01, 0x02, 0x04
ALL_INTR = 0x0F
LOOP, OUT2, RTS, DTR = 0x10, 0x08, 0x02, 0x01
DR, THRE, TEMT = 0x01, 0x20, 0x40
NO_INT = 0x01
PASS_LIMIT = 512


class Latch(IrqLine):
    """The interrupt controller's: an edge is remembered until the handler is entered."""

    def __init__(self) -> None:
        self.set = False

    def trigger(self) -> None:
        self.set = True


class LinuxDriver:
    """What it does at boot, when a terminal is opened, and on an interrupt."""

    def __init__(self, bus: Bus, latch: Latch) -> None:
        self._bus = bus
        self._latch = latch
        self.received = bytearray()
        self.to_send = bytearray()
        self.ier = 0

    def serial_in(self, offset: int) -> int:
        return self._bus.read(COM1 + offset, 1)

    def serial_out(self, offset: int, value: int) -> None:
        self._bus.write(COM1 + offset, 1, value)

    # --- finding it ------------------------------------------------------------------------------

    def autoconfig(self) -> str:
        scratch = self.serial_in(IER)
        self.serial_out(IER, 0)
        none = self.serial_in(IER) & ALL_INTR
        self.serial_out(IER, ALL_INTR)
        every = self.serial_in(IER) & ALL_INTR
        self.serial_out(IER, scratch)
        if (none, every) != (0, ALL_INTR):
            return "nothing: IER test"
        save_mcr, save_lcr = self.serial_in(MCR), self.serial_in(LCR)
        self.serial_out(MCR, LOOP | OUT2 | RTS)
        status = self.serial_in(MSR) & 0xF0
        self.serial_out(MCR, save_mcr)
        if status != 0x90:
            return "nothing: LOOP test"
        self.serial_out(LCR, CONF_MODE_B)
        self.serial_out(EFR, 0)
        self.serial_out(LCR, 0)
        self.serial_out(FCR, ENABLE_FIFO)
        kind = {0x00: self.autoconfig_8250, 0xC0: self.autoconfig_16550a}.get(
            self.serial_in(IIR) & 0xC0, lambda: "16550, or unknown"
        )()
        self.serial_out(LCR, save_lcr)
        self.serial_out(MCR, save_mcr)
        self.serial8250_clear_fifos()
        self.serial_in(RX)
        self.serial_out(IER, 0)
        return kind

    def autoconfig_8250(self) -> str:
        answers = []
        for value in (0xA5, 0x5A):
            self.serial_out(SCR, value)
            answers.append(self.serial_in(SCR))
        return "16450" if answers == [0xA5, 0x5A] else "8250"

    def autoconfig_16550a(self) -> str:
        """All of it, as with CONFIG_SERIAL_8250_16550A_VARIANTS."""
        self.serial_out(LCR, CONF_MODE_A)
        if self.serial_in(EFR) == 0:
            return "16650"
        self.serial_out(LCR, CONF_MODE_B)
        if self.serial_in(EFR) == 0:
            return "with an EFR"
        self.serial_out(LCR, 0)
        mcr = self.serial_in(MCR)
        self.serial_out(LCR, 0xE0)
        excr1 = self.serial_in(2)
        if not (excr1 ^ mcr) & LOOP:
            self.serial_out(LCR, 0)
            self.serial_out(MCR, mcr ^ LOOP)
            self.serial_out(LCR, 0xE0)
            excr1 = self.serial_in(2)
            self.serial_out(LCR, 0)
            self.serial_out(MCR, mcr)
            if (excr1 ^ mcr) & LOOP:
                return "NS16550A SuperIO"
        sizes = []
        for lcr in (0, CONF_MODE_A):
            self.serial_out(LCR, lcr)
            self.serial_out(FCR, ENABLE_FIFO | SIZE_64)
            sizes.append(self.serial_in(IIR) & 0xE0)
            self.serial_out(FCR, ENABLE_FIFO)
        self.serial_out(LCR, 0)
        if sizes == [0xC0, 0xE0]:
            return "16750"
        iersave = self.serial_in(IER)
        self.serial_out(IER, iersave & ~0x40)
        self.serial_out(IER, iersave | 0x40)
        if self.serial_in(IER) & 0x40:
            return "XScale"
        self.serial_out(IER, iersave)
        return "U6_16550A" if self.size_fifo() == 64 else "16550A"

    def size_fifo(self) -> int:
        old_lcr = self.serial_in(LCR)
        self.serial_out(LCR, 0)
        old_mcr = self.serial_in(MCR)
        self.serial_out(FCR, ENABLE_FIFO | CLEAR_RCVR | CLEAR_XMIT)
        self.serial_out(MCR, LOOP)
        self.serial_out(LCR, CONF_MODE_A)
        old_divisor = self.serial_in(RX), self.serial_in(DLM)
        self.serial_out(TX, 1)
        self.serial_out(DLM, 0)
        self.serial_out(LCR, WLEN8)
        for value in range(256):
            self.serial_out(TX, value)
        count = 0
        while self.serial_in(LSR) & DR and count < 256:
            self.serial_in(RX)
            count += 1
        self.serial_out(MCR, old_mcr)
        self.serial_out(LCR, CONF_MODE_A)
        self.serial_out(TX, old_divisor[0])
        self.serial_out(DLM, old_divisor[1])
        self.serial_out(LCR, old_lcr)
        return count

    def serial8250_clear_fifos(self) -> None:
        self.serial_out(FCR, ENABLE_FIFO)
        self.serial_out(FCR, ENABLE_FIFO | CLEAR_RCVR | CLEAR_XMIT)
        self.serial_out(FCR, 0)

    # --- opening it ------------------------------------------------------------------------------

    def serial8250_do_startup(self) -> set[str]:
        """Returns the bugs that it thinks the chip has."""
        bugs = set()
        self.serial8250_clear_fifos()
        for register in (LSR, RX, IIR, MSR):
            self.serial_in(register)
        if self.serial_in(LSR) == 0xFF:
            bugs.add("LSR safety check engaged!")
        self.serial_out(IER, THRI)
        iir1 = self.serial_in(IIR)
        self.serial_out(IER, 0)
        self.serial_out(IER, THRI)
        iir = self.serial_in(IIR)
        self.serial_out(IER, 0)
        if not iir1 & NO_INT and iir & NO_INT:
            bugs.add("UART_BUG_THRE")
        self.serial_out(LCR, WLEN8)
        self.serial_out(MCR, OUT2 | RTS | DTR)
        self.serial_out(IER, THRI)
        lsr, iir = self.serial_in(LSR), self.serial_in(IIR)
        self.serial_out(IER, 0)
        if lsr & TEMT and iir & NO_INT:
            bugs.add("UART_BUG_TXEN")
        for register in (LSR, RX, IIR, MSR):
            self.serial_in(register)
        self.serial8250_do_set_termios()
        return bugs

    def serial8250_do_set_termios(self) -> None:
        self.ier = RLSI | RDI
        self.serial_out(IER, self.ier)
        self.serial_out(LCR, WLEN8 | 0x80)
        self.serial_out(TX, 1)
        self.serial_out(DLM, 0)
        self.serial_out(LCR, WLEN8)
        self.serial_out(FCR, ENABLE_FIFO)
        self.serial_out(FCR, ENABLE_FIFO | 0x80)

    # --- using it --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """A process writes to the terminal: serial8250_start_tx."""
        self.to_send += data
        self.ier |= THRI
        self.serial_out(IER, self.ier)

    def console_write(self, data: bytes) -> None:
        """serial8250_console_write: the kernel's own words, without interrupts."""
        ier = self.serial_in(IER)
        self.serial_out(IER, 0)
        for byte in data:
            assert self.serial_in(LSR) & THRE
            self.serial_out(TX, byte)
        assert self.serial_in(LSR) & (THRE | TEMT) == THRE | TEMT
        self.serial_out(IER, ier)

    def take_interrupts(self) -> int:
        """Enter the handler as long as there was an edge; returns how often."""
        entered = 0
        while self._latch.set:
            self._latch.set = False
            self.serial8250_interrupt()
            entered += 1
        return entered

    def serial8250_interrupt(self) -> None:
        for _ in range(PASS_LIMIT):
            if not self.serial8250_handle_irq():
                return

    def serial8250_handle_irq(self) -> bool:
        if self.serial_in(IIR) & NO_INT:
            return False
        status = self.serial_in(LSR)
        while status & DR:
            self.received.append(self.serial_in(RX))
            status = self.serial_in(LSR)
        self.serial_in(MSR)
        if status & THRE and self.ier & THRI:
            for byte in self.to_send[:16]:
                self.serial_out(TX, byte)
            del self.to_send[:16]
            if not self.to_send:
                self.ier &= ~THRI
                self.serial_out(IER, self.ier)
        return True


class Machine:
    def __init__(self) -> None:
        self.printed = bytearray()
        self.bus = Bus("port")
        latch = Latch()
        self.uart = Uart8250(self.printed.extend, latch)
        self.bus.insert(COM1, REGISTER_COUNT, self.uart)
        self.driver = LinuxDriver(self.bus, latch)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def opened(machine: Machine) -> Machine:
    machine.driver.autoconfig()
    machine.driver.serial8250_do_startup()
    machine.driver.take_interrupts()
    return machine


def test_where_there_is_no_port_none_is_found() -> None:
    assert LinuxDriver(Bus("port"), Latch()).autoconfig() == "nothing: IER test"


def test_autoconfig_finds_a_16550a(machine: Machine) -> None:
    assert machine.driver.autoconfig() == "16550A"
    assert machine.printed == b"", "what it tried in loopback does not show"


def test_autoconfig_finds_it_again_with_an_open_terminal_before_it(opened: Machine) -> None:
    assert opened.driver.autoconfig() == "16550A"


def test_the_fifo_is_sixteen_bytes(machine: Machine) -> None:
    assert machine.driver.size_fifo() == 16


def test_startup_sees_no_bugs(machine: Machine) -> None:
    machine.driver.autoconfig()
    assert machine.driver.serial8250_do_startup() == set()


def test_the_kernels_console_needs_no_interrupt(opened: Machine) -> None:
    opened.driver.console_write(b"[    0.000000] Linux version\r\n")
    assert opened.printed == b"[    0.000000] Linux version\r\n"
    assert opened.driver.take_interrupts() == 0


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4096, 100_000])
def test_what_a_process_writes_comes_out_by_interrupts(opened: Machine, size: int) -> None:
    data = bytes(i & 0xFF for i in range(size))
    opened.driver.write(data)
    assert opened.driver.take_interrupts() > 0
    assert opened.printed == data
    assert opened.driver.ier == RLSI | RDI


def test_kernel_words_amid_a_processs_stop_neither(opened: Machine) -> None:
    opened.driver.write(b"pro")
    opened.driver.console_write(b"[kernel]")
    opened.driver.take_interrupts()
    assert opened.printed == b"[kernel]pro"


def test_what_the_host_types_is_read_by_interrupts(opened: Machine) -> None:
    sent = b"uname -a\n" * 100
    rest = sent
    while rest:
        rest = rest[opened.uart.feed(rest) :]
        assert opened.driver.take_interrupts() == 1
    assert opened.driver.received == sent


def test_rep_outsb_of_64_kib_is_all_delivered(opened: Machine) -> None:
    data = bytes(i * 7 & 0xFF for i in range(64 * 1024))
    opened.bus.write_many(COM1 + TX, 1, data)
    assert opened.printed == data
