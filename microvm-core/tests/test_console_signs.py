"""The kernel's last words."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.console_signs import MAX_LINE_BYTES, SignReader, Signs

PANIC = b"[    1.23] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
LOG = (
    b"[    0.1] booting\r\n"
    + PANIC
    + b"[    1.24] Call Trace:\r\n"
    + b"[    1.30] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"
)


def signs_of(*chunks: bytes) -> Signs:
    reader = SignReader()
    for chunk in chunks:
        reader.feed(chunk)
    reader.finish()
    return reader.signs


def test_a_quiet_console_has_no_signs() -> None:
    assert signs_of(b"login:\r\n$ ls\r\n") == Signs()


def test_a_panic_is_its_line() -> None:
    signs = signs_of(PANIC)
    assert signs.panic == "Kernel panic - not syncing: VFS: Unable to mount root fs"
    assert not signs.hung


def test_the_first_panic_stands() -> None:
    signs = signs_of(PANIC, PANIC.replace(b"VFS", b"second"))
    assert signs.panic is not None
    assert "VFS" in signs.panic


def test_a_panic_that_stays_is_hung() -> None:
    assert signs_of(LOG).hung


@pytest.mark.parametrize("line", [b"reboot: System halted\r\n", b"[ 1.0] reboot: Power down\r\n"])
def test_halting_is_seen(line: bytes) -> None:
    assert signs_of(line).halting


def test_restarting_is_seen() -> None:
    assert signs_of(b"[    0.6] reboot: Restarting system\r\n").restarting


def test_a_last_line_without_its_end_counts_when_the_console_has_ended() -> None:
    assert signs_of(PANIC.rstrip()).panic is not None


@given(st.lists(st.integers(0, len(LOG)), max_size=8))
def test_chunks_make_no_difference(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(LOG)]
    chunks = [LOG[a:b] for a, b in itertools.pairwise(edges)]
    assert signs_of(*chunks) == signs_of(LOG)


def test_an_endless_line_is_not_kept() -> None:
    reader = SignReader()
    for _ in range(100):
        reader.feed(b"x" * 10_000)
    assert len(reader._line) <= MAX_LINE_BYTES


def test_a_panics_words_are_made_visible_and_bounded() -> None:
    signs = signs_of(b"Kernel panic - not syncing: \x1b[2J" + b"y" * 10_000 + b"\n")
    assert signs.panic is not None
    assert "\\x1b[2J" in signs.panic
    assert len(signs.panic) <= MAX_LINE_BYTES + 10
