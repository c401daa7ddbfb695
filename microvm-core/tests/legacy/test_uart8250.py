"""The serial port's registers, one rule each; row 16 of the hazard catalogue."""

import threading

import pytest

from microvm.abc import IrqLine
from microvm.legacy.uart8250 import (
    DLL,
    DLM,
    FCR,
    FIFO_BYTES,
    IER,
    IIR,
    LCR,
    LSR,
    MCR,
    MSR,
    RBR,
    SCR,
    THR,
    Uart8250,
)

IDLE = 0x60
ENABLE, RCVR_RESET = 0x01, 0x02
ERBFI, ETBEI, ELSI, EDSSI = 1, 2, 4, 8
LOOP = 0x10


class Edges(IrqLine):
    def __init__(self) -> None:
        self.count = 0

    def trigger(self) -> None:
        self.count += 1


class Port:
    """A serial port with its surroundings, as bytes in and out."""

    def __init__(self) -> None:
        self.printed = bytearray()
        self.pieces = 0
        self.irq = Edges()
        self.rooms = 0
        self.uart = Uart8250(self._take, self.irq, self._room)

    def _take(self, data: bytes) -> None:
        self.pieces += 1
        self.printed += data

    def _room(self) -> None:
        self.rooms += 1

    def __getitem__(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def __setitem__(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def edges(self) -> int:
        """How many there were since the last time."""
        count, self.irq.count = self.irq.count, 0
        return count


@pytest.fixture
def port() -> Port:
    return Port()


# --- registers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "value"),
    [(RBR, 0), (IER, 0), (IIR, 0x01), (LCR, 0), (MCR, 0), (LSR, IDLE), (MSR, 0xB0), (SCR, 0)],
)
def test_what_each_register_is_after_reset(port: Port, offset: int, value: int) -> None:
    assert port[offset] == value


@pytest.mark.parametrize(
    ("offset", "reads"),
    [(IER, 0x0F), (LCR, 0xFF), (MCR, 0x1F), (LSR, IDLE), (MSR, 0xB0), (SCR, 0xFF)],
)
def test_which_bits_each_register_keeps(port: Port, offset: int, reads: int) -> None:
    port[offset] = 0xFF
    assert port[offset] == reads


def test_the_divisor_is_behind_dlab_and_disturbs_nothing(port: Port) -> None:
    port[IER] = ERBFI
    port[LCR] = 0x83
    port[MCR] = 0x03
    port[DLL], port[DLM] = 0x34, 0x12
    assert (port[DLL], port[DLM]) == (0x34, 0x12)
    port[LCR] = 0x03
    assert port[IER] == ERBFI
    assert port.printed == b""
    port[THR] = ord("x")
    assert port.printed == b"x"


# --- output ----------------------------------------------------------------------------------


def test_a_byte_is_out_at_once_and_the_transmitter_always_empty(port: Port) -> None:
    for byte in b"hello":
        assert port[LSR] == IDLE
        port[THR] = byte
    assert port.printed == b"hello"


def test_a_block_to_thr_goes_out_in_one_piece(port: Port) -> None:
    data = bytes(range(256)) * 256
    port.uart.write_block(THR, 1, data)
    assert port.printed == data
    assert port.pieces == 1


def test_a_block_with_dlab_set_is_the_divisors(port: Port) -> None:
    port[LCR] = 0x80
    port.uart.write_block(DLL, 1, b"abc")
    assert port[DLL] == ord("c")
    assert port.printed == b""


def test_a_block_to_another_register_is_as_many_writes(port: Port) -> None:
    port.uart.write_block(SCR, 1, b"abc")
    assert port[SCR] == ord("c")


def test_a_wide_write_is_its_bytes_at_consecutive_registers(port: Port) -> None:
    port.uart.write(THR, 2, ERBFI << 8 | ord("w"))
    assert port.printed == b"w"
    assert port[IER] == ERBFI
    port.uart.write_block(THR, 2, b"a\x00b\x01")
    assert port.printed == b"wab"
    assert port[IER] == ERBFI


def test_a_wide_read_is_its_registers_side_by_side(port: Port) -> None:
    port[SCR] = 0x5A
    assert port.uart.read(LCR, 2) == 0x0000
    assert port.uart.read(MSR, 2) == 0x5AB0
    assert port.uart.read(RBR, 8) == 0x5AB0_6000_0001_0000


# --- the interrupt of an empty transmitter -------------------------------------------------------


def test_thr_empty_interrupts_when_enabled_and_after_each_write(port: Port) -> None:
    port[THR] = 0
    assert port.edges() == 0
    port[IER] = ETBEI
    assert port.edges() == 1
    assert port[IIR] == 0x02
    assert port[IIR] == 0x01, "reading it has acknowledged it"
    port[THR] = 0
    assert port.edges() == 1
    assert port[IIR] == 0x02


def test_thr_empty_is_raised_again_by_enabling_it_again(port: Port) -> None:
    port[IER] = ETBEI
    assert port[IIR] == 0x02
    port[IER] = 0
    assert port[IIR] == 0x01
    port[IER] = ETBEI
    assert port.edges() == 2
    assert port[IIR] == 0x02


def test_a_pending_interrupt_makes_no_second_edge(port: Port) -> None:
    port[IER] = ETBEI
    for byte in b"sixteen bytes...":
        port[THR] = byte
    assert port.edges() == 1


def test_a_block_interrupts_too(port: Port) -> None:
    port[IER] = ETBEI
    assert port[IIR] == 0x02
    port.edges()
    port.uart.write_block(THR, 1, b"abc")
    assert port.edges() == 1
    assert port[IIR] == 0x02


# --- input -----------------------------------------------------------------------------------


def test_without_fifos_there_is_room_for_one_byte(port: Port) -> None:
    assert port.uart.feed(b"ab") == 1
    assert port[LSR] == IDLE | 1
    assert port[RBR] == ord("a")
    assert port[LSR] == IDLE
    assert port.uart.feed(b"b") == 1


def test_the_fifo_takes_sixteen_and_says_how_many(port: Port) -> None:
    port[FCR] = ENABLE
    assert port.uart.feed(bytes(range(10))) == 10
    assert port.uart.feed(bytes(range(10, 30))) == 6
    assert port.uart.feed(b"x") == 0
    assert [port[RBR] for _ in range(FIFO_BYTES)] == list(range(16))
    assert port[LSR] == IDLE, "nothing was lost: the rest was not taken"


def test_the_host_is_asked_for_more_when_the_guest_has_read_everything(port: Port) -> None:
    port[FCR] = ENABLE
    port.uart.feed(bytes(20))
    for _ in range(FIFO_BYTES - 1):
        port[RBR]
    assert port.rooms == 0
    port[RBR]
    assert port.rooms == 1
    port[RBR]
    assert port.rooms == 1, "asked once"


def test_the_host_is_not_asked_when_it_had_no_more(port: Port) -> None:
    port[FCR] = ENABLE
    port.uart.feed(bytes(16))
    for _ in range(FIFO_BYTES):
        port[RBR]
    assert port.rooms == 0


def test_the_host_is_asked_for_more_when_the_fifo_is_cleared(port: Port) -> None:
    port[FCR] = ENABLE
    port.uart.feed(bytes(20))
    port[FCR] = ENABLE | RCVR_RESET
    assert port.rooms == 1


def test_who_is_asked_may_feed_at_once() -> None:
    rest = bytearray(range(50))

    def more() -> None:
        del rest[: uart.feed(bytes(rest))]

    uart = Uart8250(lambda data: None, Edges(), more)
    uart.write(FCR, 1, ENABLE)
    more()
    assert bytes(uart.read(RBR, 1) for _ in range(50)) == bytes(range(50))


def test_an_empty_receiver_reads_as_zero(port: Port) -> None:
    assert port[RBR] == 0


@pytest.mark.parametrize("value", [0x00, ENABLE | RCVR_RESET], ids=["mode change", "reset bit"])
def test_the_fifo_is_cleared_by(port: Port, value: int) -> None:
    port[FCR] = ENABLE
    port.uart.feed(b"abc")
    port[FCR] = value
    assert port[LSR] == IDLE


def test_the_reset_bit_counts_with_the_enable_bit_only(port: Port) -> None:
    port.uart.feed(b"a")
    port[FCR] = RCVR_RESET
    assert port[RBR] == ord("a")


# --- the interrupt of received data ------------------------------------------------------------


def test_data_that_waited_interrupts_when_it_is_allowed_to(port: Port) -> None:
    port.uart.feed(b"a")
    assert port.edges() == 0
    port[IER] = ERBFI
    assert port.edges() == 1
    assert port[IIR] == 0x04
    assert port[IIR] == 0x04, "reading data acknowledges it, and nothing else does"
    port[RBR]
    assert port[IIR] == 0x01


def test_every_feed_interrupts(port: Port) -> None:
    port[FCR], port[IER] = ENABLE, ERBFI
    port.uart.feed(b"a")
    port.uart.feed(b"b")
    assert port.edges() == 2
    port.uart.feed(b"")
    assert port.edges() == 0


def test_a_feed_that_finds_no_room_does_not_interrupt(port: Port) -> None:
    port[FCR], port[IER] = ENABLE, ERBFI
    port.uart.feed(bytes(16))
    port.edges()
    assert port.uart.feed(b"x") == 0
    assert port.edges() == 0


@pytest.mark.parametrize(("level", "count"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_below_the_trigger_level_it_is_a_timeout(port: Port, level: int, count: int) -> None:
    port[FCR], port[IER] = ENABLE | level << 6, ERBFI
    port.uart.feed(bytes(count))
    assert port[IIR] == 0xC4
    port[RBR]
    assert port[IIR] == (0xCC if count > 1 else 0xC1)


def test_causes_are_told_by_priority_and_one_does_not_hide_the_next(port: Port) -> None:
    port[MCR] = LOOP
    port[IER] = ERBFI | ETBEI | ELSI | EDSSI
    port[THR], port[THR] = 1, 2
    seen = []
    for acknowledge in (LSR, RBR, IIR, MSR):
        seen.append(port[IIR])
        if acknowledge != IIR:
            port[acknowledge]
    assert seen == [0x06, 0x04, 0x02, 0x00]
    assert port[IIR] == 0x01


# --- modem lines and loopback --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mcr", "lines"), [(0, 0), (0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0xF, 0xF0)]
)
def test_in_loopback_the_outputs_are_the_inputs(port: Port, mcr: int, lines: int) -> None:
    port[MCR] = LOOP | mcr
    assert port[MSR] & 0xF0 == lines


def test_lines_that_moved_are_told_once_and_ring_at_its_end_only(port: Port) -> None:
    port[MCR] = LOOP | 0x04
    assert port[MSR] == 0x4B
    assert port[MSR] == 0x40
    port[MCR] = LOOP
    assert port[MSR] == 0x04


def test_moved_lines_interrupt(port: Port) -> None:
    port[IER] = EDSSI
    port[MCR] = LOOP
    assert port.edges() == 1
    assert port[IIR] == 0x00
    port[MSR]
    assert port[IIR] == 0x01


def test_in_loopback_nothing_leaves_and_nothing_comes_in(port: Port) -> None:
    port[MCR] = LOOP
    port[THR] = ord("x")
    port.uart.write_block(THR, 1, b"y")
    assert port.uart.feed(b"host") == 0
    assert port.printed == b""
    assert port[RBR] == ord("y"), "without a FIFO the newer byte takes the place of the older"
    assert port.rooms == 0
    port[MCR] = 0
    assert port.rooms == 1


def test_what_comes_when_the_fifo_is_full_is_lost_and_said_so_once(port: Port) -> None:
    port[FCR], port[MCR], port[IER] = ENABLE, LOOP, ELSI
    for value in range(FIFO_BYTES):
        port[THR] = value
    assert port[LSR] == IDLE | 1
    assert port.edges() == 0
    port[THR] = 99
    assert port.edges() == 1
    assert port[IIR] == 0xC6
    assert port[LSR] == IDLE | 3
    assert port[LSR] == IDLE | 1
    assert [port[RBR] for _ in range(FIFO_BYTES)] == list(range(FIFO_BYTES))


# --- floods and threads ----------------------------------------------------------------------


def test_a_flood_of_ier_and_fcr_writes_leaves_the_port_as_it_was(port: Port) -> None:
    for value in range(65_536):
        port[IER] = value & 0xFF
        port[FCR] = value >> 8
        port[THR] = 0
    assert len(port.printed) == 65_536
    assert port.irq.count <= 4 * 65_536
    port[IER], port[FCR] = ERBFI, ENABLE
    assert port.uart.feed(b"a") == 1
    assert port[IIR] & 0x0F == 0x04
    assert port[RBR] == ord("a")


def test_a_driver_that_wakes_by_edges_alone_gets_every_byte() -> None:
    """One thread feeds, another is the guest: it sleeps until an edge, and reads IIR until none."""
    sent = bytes(i * 7 & 0xFF for i in range(20_000))
    room, edge = threading.Event(), threading.Semaphore(0)

    class Line(IrqLine):
        def trigger(self) -> None:
            edge.release()

    uart = Uart8250(lambda data: None, Line(), room.set)
    uart.write(FCR, 1, ENABLE | 0x80)
    uart.write(IER, 1, ERBFI)

    def host() -> None:
        at = 0
        while at < len(sent):
            room.clear()
            offered = sent[at : at + 23]
            taken = uart.feed(offered)
            at += taken
            assert taken == len(offered) or room.wait(20), f"no room after {at} bytes"

    feeder = threading.Thread(target=host)
    feeder.start()
    received = bytearray()
    while len(received) < len(sent):
        assert edge.acquire(timeout=20), f"no edge after {len(received)} bytes"
        while not uart.read(IIR, 1) & 1:
            while uart.read(LSR, 1) & 1:
                received.append(uart.read(RBR, 1))
    feeder.join(20)
    assert received == sent
