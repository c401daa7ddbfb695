"""The clock, as Linux reads it."""

import calendar
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.legacy.cmos import DATA, HOLD_S, INDEX, CmosRtc

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
UIP, DM_BINARY, HOURS_24 = 0x80, 0x04, 0x02


class Clock:
    """A clock that moves a little each time it is read, as a guest's reading takes time."""

    def __init__(self, now: float, step: float = 0.0) -> None:
        self.now = now
        self._step = step

    def __call__(self) -> float:
        self.now += self._step
        return self.now


def cmos_read(rtc: CmosRtc, index: int) -> int:
    rtc.write(INDEX, 1, index)
    return rtc.read(DATA, 1)


def at(text: str) -> CmosRtc:
    return CmosRtc(Clock(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()))


def bcd2bin(value: int) -> int:
    return (value >> 4) * 10 + (value & 0x0F)


def mc146818_get_time(rtc: CmosRtc) -> tuple[float, int]:
    """As drivers/rtc/rtc-mc146818-lib.c, mc146818_avoid_UIP; returns the time, and the tries."""
    for tries in range(1, 101):
        seconds = cmos_read(rtc, SECONDS)
        if cmos_read(rtc, A) & UIP or seconds != cmos_read(rtc, SECONDS):
            continue
        fields = [
            bcd2bin(cmos_read(rtc, index)) for index in (MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY)
        ]
        assert cmos_read(rtc, B) & (DM_BINARY | HOURS_24) == HOURS_24
        if cmos_read(rtc, A) & UIP or seconds != cmos_read(rtc, SECONDS):
            continue
        minute, hour, day, month, year, century = fields
        when = (century * 100 + year, month, day, hour, minute, bcd2bin(seconds))
        return calendar.timegm(when), tries
    raise AssertionError("Linux gives up after 100 tries")


def test_time_is_utc_in_bcd() -> None:
    rtc = at("2031-12-09T23:58:47")
    registers = (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS)
    assert [cmos_read(rtc, index) for index in registers] == [
        *(0x20, 0x31, 0x12, 0x09),
        *(0x23, 0x58, 0x47),
    ]


@pytest.mark.parametrize(
    ("day", "number"), [("2026-11-22", 1), ("2026-11-23", 2), ("2026-11-28", 7)]
)
def test_the_week_begins_on_sunday_with_one(day: str, number: int) -> None:
    assert cmos_read(at(day), WEEKDAY) == number


@pytest.mark.parametrize(
    ("register", "value"), [(A, 0x26), (B, 0x02), (C, 0), (D, 0x80), (0x0F, 0), (0x7F, 0)]
)
def test_what_is_no_time_is_constant(register: int, value: int) -> None:
    assert cmos_read(at("2026-01-01"), register) == value


def test_the_nmi_bit_is_no_part_of_the_index() -> None:
    assert cmos_read(at("2026-01-01"), 0x80 | D) == 0x80


def test_the_index_port_can_not_be_read() -> None:
    assert at("2026-01-01").read(INDEX, 1) == 0xFF


def test_what_is_written_changes_nothing() -> None:
    rtc = at("2026-11-25T10:20:30")
    for index in range(128):
        rtc.write(INDEX, 1, index)
        rtc.write(DATA, 1, 0xA5)
    assert cmos_read(rtc, MINUTES) == 0x20
    assert cmos_read(rtc, B) == 0x02


def test_both_ports_written_at_once_are_index_and_data() -> None:
    rtc = at("2026-11-25T10:20:30")
    rtc.write(INDEX, 2, 0xFF00 | MINUTES)
    assert rtc.read(DATA, 1) == 0x20


@given(st.integers(0, 4_000_000_000), st.floats(0, HOLD_S / 10))
def test_linux_reads_it_at_the_first_try_however_slow_its_exits(start: int, step: float) -> None:
    """The last ten microseconds of a second are the worst time to begin."""
    read, tries = mc146818_get_time(CmosRtc(Clock(start + 0.999_990, step)))
    assert tries <= 2
    assert start <= read <= start + 2


def test_a_reading_within_the_hold_takes_one_try_across_a_second() -> None:
    read, tries = mc146818_get_time(CmosRtc(Clock(1000.998, HOLD_S / 100)))
    assert (read, tries) == (1000, 1)


def test_time_goes_on_for_a_guest_that_never_stops_reading() -> None:
    rtc = CmosRtc(Clock(1000.0, 0.01))
    assert {bcd2bin(cmos_read(rtc, SECONDS)) for _ in range(280)} == {40, 41, 42}


def test_a_clock_set_back_is_followed() -> None:
    clock = Clock(2000.0)
    rtc = CmosRtc(clock)
    assert cmos_read(rtc, SECONDS) == 0x20
    clock.now = 1001.0
    assert cmos_read(rtc, SECONDS) == 0x41
