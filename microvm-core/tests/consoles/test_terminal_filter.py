"""What a guest can do to a person's terminal. Row 63."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.consoles.terminal_filter import (
    MAX_SEQUENCE_CHARACTERS,
    MAX_STRING_CHARACTERS,
    TerminalFilter,
)


@pytest.mark.parametrize(
    "harmless",
    [
        "plain é text\r\n".encode(),
        b"50%\r100%\x08\t\a",
        b"\x1b[31mred\x1b[0m",
        b"\x1b[2J\x1b[10;20H\x1b[K",
        b"\x1b[?25l\x1b[?2004h",
        b"\x1b7\x1b8\x1b(B",
    ],
)
def test_what_a_shell_prints_passes(harmless: bytes) -> None:
    assert TerminalFilter().feed(harmless) == harmless


@pytest.mark.parametrize(
    "harmful",
    [
        b"\x1b]0;title\a",
        b"\x1b]52;c;cm0gLXJmIC8=\x1b\\",
        b"\x1b[6n",
        b"\x1b[c",
        b"\x1b[>c",
        b"\x1b[21t",
        b"\x1b[5i",
        b"\x1b[!p",
        b"\x1bP$qm\x1b\\",
        b"\x1b_command\x1b\\",
        b"\x1bc",
        b"\x1bZ",
        b"\x00",
        "\x9b6n"[:1].encode(),
        "\x9d0;t".encode()[:2],
        b"\x1b[" + b"1;" * MAX_SEQUENCE_CHARACTERS + b"m",
    ],
)
def test_what_commands_the_terminal_is_left_out(harmful: bytes) -> None:
    assert TerminalFilter().feed(b"a" + harmful + b"b") == b"ab"


def test_what_is_no_utf8_is_replaced() -> None:
    assert TerminalFilter().feed(b"a\x9b\xffb").decode() == "a\ufffd\ufffdb"


def test_a_string_without_end_hides_what_follows_for_a_while_only() -> None:
    shown = TerminalFilter().feed(b"\x1b]0;" + b"x" * (MAX_STRING_CHARACTERS + 100) + b"panic")
    assert shown.endswith(b"panic")
    assert len(shown) < 200


ALLOWED = re.compile(
    r"(?:[^\x00-\x1f\x7f-\x9f]|[\a\b\t\n\v\f\r]|\x1b\[[0-?]*[@-~]|\x1b[()*+][0-9A-Za-z]|\x1b[78DEHM=>])*"
)
PIECES = st.lists(
    st.sampled_from([b"\x1b", b"[", b"]", b"P", b"\\", b"\a", b"0", b";", b"?", b"m", b"n", b"x"])
    | st.binary(max_size=6),
    max_size=40,
)


@given(PIECES)
def test_whatever_comes_is_text_or_a_known_sequence(pieces: list[bytes]) -> None:
    """Row 63, fuzzed; and pieces make no difference."""
    whole, by_piece = TerminalFilter(), TerminalFilter()
    shown = whole.feed(b"".join(pieces))
    assert b"".join(map(by_piece.feed, pieces)) == shown
    assert ALLOWED.fullmatch(shown.decode())
    assert not re.search(rb"\x1b\[[0-?]*[cntipqy]", shown)
