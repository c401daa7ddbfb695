"""The keys that leave a console."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.consoles.escape import EscapeReader


@pytest.mark.parametrize(
    ("typed", "for_the_guest", "left"),
    [
        (b"ls\r", b"ls\r", False),
        (b"a\x1db", b"a", True),
        (b"~.", b"", True),
        (b"ls\r~.more", b"ls\r", True),
        (b"ls ~.", b"ls ~.", False),
        (b"~~.", b"~.", False),
        (b"~x", b"~x", False),
        (b"\r~\r~.", b"\r~\r", True),
        (b"~\x1d", b"", True),
    ],
)
def test_control_bracket_and_tilde_dot_leave(typed, for_the_guest, left) -> None:
    keys = EscapeReader()
    assert (keys.feed(typed), keys.left) == (for_the_guest, left)


@given(st.lists(st.binary(max_size=4), max_size=8))
def test_pieces_make_no_difference(pieces: list[bytes]) -> None:
    whole, by_piece = EscapeReader(), EscapeReader()
    out = b"".join(map(by_piece.feed, pieces))
    assert out == whole.feed(b"".join(pieces))
    assert by_piece.left == whole.left
