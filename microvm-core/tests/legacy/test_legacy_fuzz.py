"""Row 16: whatever is read and written, at any width: answers that fit, no exception, no growth."""

from hypothesis import given
from hypothesis import strategies as st

from microvm.abc import BusDevice, IrqLine
from microvm.bus import Bus
from microvm.legacy.acpi_pm import AcpiPm
from microvm.legacy.cmos import CmosRtc
from microvm.legacy.i8042 import I8042
from microvm.legacy.reset_control import ResetControl
from microvm.legacy.uart8250 import FIFO_BYTES, IIR, REGISTER_COUNT, Uart8250

BASE = 0x100
SIZES = st.sampled_from([1, 2, 4, 8])
VALUES = st.integers(0, 2**64 - 1)
OFFSETS = st.integers(-2, 9)
WORDS = st.one_of(
    st.tuples(st.just("read"), OFFSETS, SIZES),
    st.tuples(st.just("read_many"), OFFSETS, SIZES, st.integers(0, 20)),
    st.tuples(st.just("write"), OFFSETS, SIZES, VALUES),
    st.tuples(st.just("write_many"), OFFSETS, SIZES, st.binary(max_size=40)),
)


class Edges(IrqLine):
    def __init__(self) -> None:
        self.count = 0

    def trigger(self) -> None:
        self.count += 1


def obey(bus: Bus, verb: str, offset: int, size: int, *rest: object) -> None:
    answer = getattr(bus, verb)(BASE + offset, size, *rest)
    if verb == "read":
        assert 0 <= answer < 1 << 8 * size
    elif verb == "read_many":
        assert len(answer) == size * rest[0]


def devices() -> list[tuple[BusDevice, int]]:
    def nothing() -> None:
        return

    i8042 = I8042(nothing)
    return [
        (AcpiPm(nothing, nothing), 3),
        (CmosRtc(), 2),
        (i8042.data, 1),
        (i8042.command, 1),
        (ResetControl(nothing), 1),
    ]


@given(st.lists(WORDS, max_size=60), st.integers(0, 4))
def test_the_small_devices_take_anything(words: list[tuple], which: int) -> None:
    device, size = devices()[which]
    bus = Bus("port")
    bus.insert(BASE, size, device)
    for word in words:
        obey(bus, *word)


@given(st.lists(WORDS | st.tuples(st.just("feed"), st.binary(max_size=40)), max_size=80))
def test_the_serial_port_takes_anything_and_loses_no_interrupt(words: list[tuple]) -> None:
    irq = Edges()
    uart = Uart8250(lambda data: None, irq)
    bus = Bus("port")
    bus.insert(BASE, REGISTER_COUNT, uart)
    edges_at_none = 0
    for verb, *rest in words:
        if verb == "feed":
            assert 0 <= uart.feed(rest[0]) <= min(FIFO_BYTES, len(rest[0]))
        else:
            obey(bus, verb, *rest)
        assert len(uart._received) <= FIFO_BYTES
        # A driver reads IIR until nothing is pending, and then sleeps: what is pending later
        # must have woken it.
        pending = uart._pending
        if pending:
            assert irq.count > edges_at_none
        else:
            edges_at_none = irq.count
        assert bool(bus.read(BASE + IIR, 1) & 1) == (not pending)
        if not uart._pending:
            edges_at_none = irq.count


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=30))
def test_whatever_is_printed_in_whatever_pieces_is_printed(pieces: list[bytes]) -> None:
    printed = bytearray()
    uart = Uart8250(printed.extend, Edges())
    bus = Bus("port")
    bus.insert(BASE, REGISTER_COUNT, uart)
    for piece in pieces:
        if len(piece) == 1:
            bus.write(BASE, 1, piece[0])
        else:
            bus.write_many(BASE, 1, piece)
    assert printed == b"".join(pieces)
