"""The PL011's registers, one rule each; rows 16 and 62 of the hazard catalogue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.abc import IrqLine
from microvm.bus import Bus
from microvm.legacy.pl011 import (
    CR_LBE,
    DR_OE,
    FIFO_BYTES,
    FR_RXFE,
    FR_RXFF,
    FR_TXFE,
    INT_OE,
    INT_RT,
    INT_RX,
    INT_TX,
    LCR_H_FEN,
    REGISTER_BYTES,
    UARTCR,
    UARTDR,
    UARTFR,
    UARTICR,
    UARTIFLS,
    UARTIMSC,
    UARTLCR_H,
    UARTMIS,
    UARTRIS,
    UARTRSR,
    Pl011,
)


class Edges(IrqLine):
    def __init__(self) -> None:
        self.count = 0

    def trigger(self) -> None:
        self.count += 1


class Port:
    def __init__(self) -> None:
        self.printed = bytearray()
        self.irq = Edges()
        self.rooms = 0
        self.uart = Pl011(self.printed.extend, self.irq, self._room)

    def _room(self) -> None:
        self.rooms += 1

    def __getitem__(self, offset: int) -> int:
        return self.uart.read(offset, 4)

    def __setitem__(self, offset: int, value: int) -> None:
        self.uart.write(offset, 4, value)

    def edges(self) -> int:
        count, self.irq.count = self.irq.count, 0
        return count


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (UARTDR, 0),
        (UARTRSR, 0),
        (UARTFR, 0x97),
        (0x020, 0),
        (0x024, 0),
        (0x028, 0),
        (UARTLCR_H, 0),
        (UARTCR, 0x300),
        (UARTIFLS, 0x12),
        (UARTIMSC, 0),
        (UARTRIS, 0),
        (UARTMIS, 0),
        (0x048, 0),
        (0x100, 0),
        (0xFFC, 0xB1),
    ],
)
def test_what_each_register_is_after_reset(port: Port, offset: int, value: int) -> None:
    assert port[offset] == value


def test_it_says_what_it_is(port: Port) -> None:
    identity = [port[offset] for offset in range(0xFE0, 0x1000, 4)]
    assert bytes(identity) == bytes.fromhex("111034000df005b1")


@pytest.mark.parametrize(
    ("offset", "reads"),
    [
        (0x020, 0xFF),
        (0x024, 0xFFFF),
        (0x028, 0x3F),
        (UARTLCR_H, 0xFF),
        (UARTCR, 0xFF87),
        (UARTIFLS, 0x3F),
        (UARTIMSC, 0x7FF),
        (0x048, 0x07),
        (UARTFR, 0x97),
        (UARTRIS, 0),
        (0xFE0, 0x11),
    ],
)
def test_which_bits_each_register_keeps(port: Port, offset: int, reads: int) -> None:
    port[offset] = 0xFFFF_FFFF
    assert port[offset] == reads


def test_a_byte_is_out_at_once_and_the_transmitter_always_empty(port: Port) -> None:
    for byte in b"hello":
        assert port[UARTFR] & FR_TXFE
        port[UARTDR] = byte | 0xAB00
    assert port.printed == b"hello"


def test_the_transmit_interrupt_follows_each_write_and_not_its_enabling(port: Port) -> None:
    port[UARTIMSC] = INT_TX
    assert port.edges() == 0
    port[UARTDR] = 1
    assert (port.edges(), port[UARTMIS]) == (1, INT_TX)
    port[UARTDR] = 2
    assert port.edges() == 0
    port[UARTICR] = INT_TX
    assert port[UARTMIS] == 0
    port[UARTDR] = 3
    assert port.edges() == 1


def test_an_interrupt_that_is_pending_is_raised_when_it_is_enabled(port: Port) -> None:
    port[UARTDR] = 1
    assert (port.edges(), port[UARTRIS], port[UARTMIS]) == (0, INT_TX, 0)
    port[UARTIMSC] = INT_TX
    assert port.edges() == 1


def test_what_is_fed_is_read_in_order_and_what_has_no_room_is_offered_again(port: Port) -> None:
    port[UARTLCR_H] = LCR_H_FEN
    data = bytes(range(50))
    assert port.uart.feed(data) == FIFO_BYTES
    assert port[UARTFR] & FR_RXFF
    assert bytes(port[UARTDR] for _ in range(FIFO_BYTES)) == data[:FIFO_BYTES]
    assert (port.rooms, port[UARTFR] & FR_RXFE) == (1, FR_RXFE)
    assert port.uart.feed(data[FIFO_BYTES:]) == 50 - FIFO_BYTES


def test_without_the_fifos_there_is_room_for_one_byte(port: Port) -> None:
    assert port.uart.feed(b"ab") == 1
    assert port[UARTRIS] == INT_RX
    assert port[UARTDR] == ord("a")
    assert port[UARTRIS] == 0


@pytest.mark.parametrize(("select", "level"), [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 28)])
def test_below_its_level_received_data_is_a_timeout(port: Port, select: int, level: int) -> None:
    port[UARTLCR_H] = LCR_H_FEN
    port[UARTIFLS] = select << 3
    port.uart.feed(bytes(level - 1))
    assert port[UARTRIS] == INT_RT
    port.uart.feed(b"x")
    assert port[UARTRIS] == INT_RX | INT_RT
    port[UARTDR]
    assert port[UARTRIS] == INT_RT


def test_each_feed_is_an_edge(port: Port) -> None:
    port[UARTLCR_H] = LCR_H_FEN
    port[UARTIMSC] = INT_RX | INT_RT
    for _ in range(3):
        port.uart.feed(b"x")
        assert port.edges() == 1


def test_loopback_brings_back_what_is_sent_and_tells_of_an_overrun(port: Port) -> None:
    port[UARTCR] = CR_LBE
    port[UARTDR] = 0x41
    port[UARTDR] = 0x42
    assert port.printed == b""
    assert port.uart.feed(b"x") == 0
    assert (port[UARTRSR], port[UARTRIS] & INT_OE) == (8, INT_OE)
    assert port[UARTDR] == 0x41 | DR_OE
    port[UARTRSR] = 0
    assert port[UARTRSR] == 0


def test_switching_the_fifos_empties_them(port: Port) -> None:
    port[UARTLCR_H] = LCR_H_FEN
    port.uart.feed(b"abc")
    port[UARTLCR_H] = 0
    assert port[UARTFR] & FR_RXFE
    assert port[UARTRIS] == 0


def test_row_62_a_flood_is_kept_nowhere_but_where_it_goes() -> None:
    """Row 62: a block of 64 KiB by one instruction, again and again."""
    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)

    uart = Pl011(count, Edges())
    bus = Bus("memory")
    bus.insert(0x1000, REGISTER_BYTES, uart)
    for _ in range(4):
        bus.write_many(0x1000, 1, b"x" * 65_536)
    assert total == 4 * 65_536


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("read"), st.integers(0, REGISTER_BYTES + 8), st.sampled_from((1, 2, 4, 8))
            ),
            st.tuples(
                st.just("write"),
                st.integers(0, REGISTER_BYTES + 8),
                st.sampled_from((1, 2, 4, 8)),
                st.integers(0, 2**64 - 1),
            ),
            st.tuples(
                st.just("write"),
                st.sampled_from((0, 0x2C, 0x30, 0x38)),
                st.just(4),
                st.integers(0, 2**16),
            ),
            st.tuples(st.just("feed"), st.binary(max_size=70)),
        ),
        max_size=60,
    )
)
def test_row_16_whatever_is_done_to_it_fits_and_nothing_grows(steps: list) -> None:
    """Row 16: any width, any offset, loopback and FIFO switches in any mixture."""
    port = Port()
    bus = Bus("memory")
    bus.insert(0, REGISTER_BYTES, port.uart)
    for verb, *rest in steps:
        if verb == "feed":
            assert 0 <= port.uart.feed(*rest) <= FIFO_BYTES
        elif verb == "read":
            assert 0 <= bus.read(*rest) < 1 << 8 * rest[1]
        else:
            bus.write(*rest)
        assert len(port.uart._received) <= FIFO_BYTES
        assert bool(port[UARTRIS] & (INT_RX | INT_RT)) <= bool(port.uart._received)
