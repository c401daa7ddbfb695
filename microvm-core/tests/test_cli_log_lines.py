"""Warnings of a command that serves: they reach standard error, and hold up nothing."""

import logging
import os
import pty
import sys
import termios

import pytest

from microvm.cli._line_writer import LineWriter
from microvm.cli._log_lines import logged_by

log = logging.getLogger("microvm.test")


def test_a_terminal_that_is_held_holds_up_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else this test does not end."""
    root = logging.getLogger()
    before = list(root.handlers)
    person, ours = pty.openpty()
    with open(ours, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        to_stderr = logging.StreamHandler(stream)
        to_stderr.setFormatter(logging.Formatter("microvm: %(message)s"))
        root.addHandler(to_stderr)
        try:
            with LineWriter(stream) as lines, logged_by(lines):
                termios.tcflow(ours, termios.TCOOFF)
                log.warning("a disk is %s", "slow")
                termios.tcflow(ours, termios.TCOON)
            seen = b""
            while not seen.endswith(b"\r\n"):
                seen += os.read(person, 4096)
            assert seen == b"microvm: a disk is slow\r\n"
            assert root.handlers == [*before, to_stderr]
        finally:
            root.removeHandler(to_stderr)
    os.close(person)


def test_handlers_of_a_programs_own_stay_as_they_are() -> None:
    root = logging.getLogger()
    own = logging.NullHandler()
    root.addHandler(own)
    before = list(root.handlers)
    try:
        with LineWriter(None) as lines, logged_by(lines):
            assert root.handlers == before
    finally:
        root.removeHandler(own)
