"""The console ring: bounded, and safe to print."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.console import MAX_LINE_CHARACTERS, ConsoleRing, visible_lines, visible_text


def ring_of(data: bytes, capacity: int = 1024) -> ConsoleRing:
    ring = ConsoleRing(capacity)
    ring.feed(data)
    return ring


def test_the_tail_is_the_last_lines_oldest_first() -> None:
    ring = ring_of(b"one\r\ntwo\r\nthree\r\n")
    assert ring.tail() == ("one", "two", "three")
    assert ring.tail(2) == ("two", "three")


def test_a_line_still_being_written_counts() -> None:
    assert ring_of(b"login: ").tail() == ("login:",)


def test_blank_lines_do_not_use_up_the_tail() -> None:
    assert ring_of(b"a\n\n\r\n   \nb\n\n").tail(2) == ("a", "b")


def test_an_empty_console_has_no_tail() -> None:
    assert ring_of(b"").tail() == ()


def test_a_line_written_over_shows_what_is_left_of_it() -> None:
    assert ring_of(b"10%\r50%\r100%\r\n").tail() == ("100%",)


def test_only_the_last_bytes_are_kept_and_the_rest_counted() -> None:
    ring = ring_of(b"x" * 100 + b"\nlast", capacity=10)
    assert ring.contents == b"xxxxx\nlast"
    assert ring.total_bytes == 105
    assert ring.dropped_bytes == 95


def test_a_line_that_lost_its_beginning_says_so() -> None:
    assert ring_of(b"abcdefghij\nlast", capacity=8).tail() == ("[...]hij", "last")


def test_a_line_without_end_is_cut() -> None:
    (line,) = ring_of(b"a" * 5000, capacity=8000).tail()
    assert line == "a" * MAX_LINE_CHARACTERS + "[...]"


def test_a_line_that_just_fits_is_whole() -> None:
    (line,) = ring_of(b"a" * MAX_LINE_CHARACTERS, capacity=8000).tail()
    assert line == "a" * MAX_LINE_CHARACTERS


def test_a_ring_must_hold_something() -> None:
    with pytest.raises(ValueError, match="positive"):
        ConsoleRing(0)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain \xc3\xa9", "plain é"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"a\x00b", "a\\x00b"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        ("a\u2028b".encode(), "a\\u2028b"),
        (b"\tx", "        x"),
    ],
)
def test_what_has_no_shape_becomes_an_escape(raw: bytes, shown: str) -> None:
    assert visible_text(raw) == shown


@given(st.binary(max_size=300))
def test_visible_text_is_always_printable(data: bytes) -> None:
    assert visible_text(data).isprintable()


@given(st.text(st.characters()))
def test_visible_lines_are_printable_and_as_many(text: str) -> None:
    shown = visible_lines(text).split("\n")
    assert len(shown) == text.count("\n") + 1
    assert all(line.isprintable() for line in shown)


@given(st.lists(st.binary(max_size=60), max_size=20), st.integers(1, 50))
def test_chunks_make_no_difference_and_memory_is_bounded(chunks: list[bytes], cap: int) -> None:
    whole = b"".join(chunks)
    ring = ConsoleRing(cap)
    for chunk in chunks:
        ring.feed(chunk)
    assert ring.contents == whole[-cap:]
    assert ring.total_bytes == len(whole)
    assert len(ring._kept) <= 2 * cap + 60
    assert all(line.isprintable() for line in ring.tail())
