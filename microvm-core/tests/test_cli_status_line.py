"""The line that a serving command keeps on a terminal; a real one, made for the test."""

import io
import os
import pty
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import suppress

import pytest

from microvm.cli._status_line import status_line

Ends = tuple[int, int]
"""Where a person looks, and where a program writes."""


@pytest.fixture
def terminal() -> Iterator[Ends]:
    person, ours = pty.openpty()
    yield person, ours
    os.close(person)
    os.close(ours)


def sees(person: int, wanted: bytes) -> bool:
    """Whether that comes next; what was written together may come in pieces."""
    seen = b""
    while len(seen) < len(wanted):
        seen += os.read(person, len(wanted) - len(seen))
    return seen == wanted


def test_a_terminal_has_one_line_that_is_written_over(terminal: Ends) -> None:
    person, ours = terminal
    with open(ours, "w", closefd=False) as stream, status_line(stream) as status:
        status.show("one")
        status.show("one")
        status.show("two")
    assert sees(person, b"\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K")


def test_a_line_can_command_the_terminal_nothing(terminal: Ends) -> None:
    person, ours = terminal
    with open(ours, "w", closefd=False) as stream, status_line(stream) as status:
        status.show("\x1b]0;x\x07\n\u202e")
        assert sees(person, b"\r\x1b[K" + rb"\x1b]0;x\x07\n\u202e")


def test_nothing_is_written_where_there_is_no_terminal() -> None:
    log = io.StringIO()
    for stream in (log, None):
        with status_line(stream) as status:
            assert not status.live
            status.show("one")
    assert log.getvalue() == ""


@pytest.mark.parametrize("held", [True, False], ids=["by Ctrl-S", "by nobody reading it"])
def test_a_terminal_that_takes_nothing_holds_up_nobody(terminal: Ends, held: bool) -> None:
    """Else this test does not end. What it gets when it goes on is the line as it is then."""
    person, ours = terminal
    tty.setraw(ours)
    with open(ours, "w", closefd=False) as stream, status_line(stream) as status:
        if held:
            termios.tcflow(ours, termios.TCOOFF)
        for count in range(5_000):
            status.show(f"connections: {count}")
        if held:
            termios.tcflow(ours, termios.TCOON)
        os.set_blocking(person, False)
        seen = b""
        while not seen.endswith(b"\r\x1b[Kat last"):
            try:
                seen += os.read(person, 65536)
            except BlockingIOError:
                status.show("at last")
    assert len(seen) < 5_000 * len("connections: 1000")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_terminal_of_another_users_has_the_line_if_we_are_at_it() -> None:
    """As after su(1): what may not be opened by its name is ours by /dev/tty."""
    script = (
        "import os, sys\n"
        "from microvm.cli._status_line import status_line\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "with status_line(sys.stderr) as status: status.show('one')\n"
    )
    child, person = pty.fork()
    if child == 0:  # pragma: no cover - another program from here on
        os.fchmod(0, 0o620)
        os.execv(sys.executable, [sys.executable, "-c", script])
    seen = b""
    with suppress(OSError):  # EIO, when all who write have gone
        while data := os.read(person, 4096):
            seen += data
    os.close(person)
    assert os.waitpid(child, 0)[1] == 0, seen
    assert seen == b"\r\x1b[Kone\r\x1b[K"


def test_what_our_parent_has_at_that_terminal_still_blocks(terminal: Ends) -> None:
    _person, ours = terminal
    with open(ours, "w", closefd=False) as stream, status_line(stream):
        assert os.get_blocking(ours)


def test_a_terminal_that_hangs_up_is_no_error() -> None:
    person, ours = pty.openpty()
    with open(ours, "w") as stream, status_line(stream) as status:
        os.close(person)
        status.show("one")
