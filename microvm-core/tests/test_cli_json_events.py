"""What ``--json`` tells reaches a reader that reads, and one that has stopped holds up nothing."""

import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

import pytest
import trio

from microvm.cli._backlog import Backlog, Weight
from microvm.cli._json_events import EventStream
from microvm.cli._line_writer import LIMIT, LineWriter

MANY = 20_000
"""Events; more than any pipe or terminal holds."""


def backlog(limit: int = 3) -> Backlog:
    return Backlog(limit, lambda counts: f"left out: {dict(counts)}")


def taken(lines: Backlog) -> list[str]:
    return list(iter(lines.take, None))


# --- what is kept ------------------------------------------------------------------------------


def test_lines_come_in_their_order() -> None:
    lines = backlog()
    for text in ("one", "two", "three"):
        lines.put(text, kind="vpn", weight=Weight.STATE)
    assert taken(lines) == ["one", "two", "three"]


def test_of_too_many_the_oldest_are_left_out_and_counted_before_what_is_kept() -> None:
    lines = backlog()
    for number in range(10):
        lines.put(str(number), kind="vpn", weight=Weight.STATE)
    assert taken(lines) == ["left out: {'vpn': 7}", "7", "8", "9"]
    lines.put("next", kind="vpn", weight=Weight.STATE)
    assert taken(lines) == ["next"]


def test_figures_go_before_states_and_states_before_what_is_said_once() -> None:
    lines = backlog()
    lines.put("ready", kind="ready", weight=Weight.ONCE)
    lines.put("up", kind="vpn", weight=Weight.STATE)
    for number in range(5):
        lines.put(str(number), kind="connections", weight=Weight.FIGURE)
    lines.put("down", kind="vpn", weight=Weight.STATE)
    lines.put("failed", kind="failed", weight=Weight.ONCE)
    told = "left out: {'connections': 5, 'vpn': 1}"
    assert taken(lines) == [told, "ready", "down", "failed"]


# --- readers -----------------------------------------------------------------------------------

Ends = tuple[int, int]
"""Where the reader reads, and where we write."""


def a_pipe() -> Ends:
    return os.pipe()


def a_pipe_that_never_blocks() -> Ends:
    """As a parent leaves it that reads and writes without blocking itself."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    return ends


def a_terminal() -> Ends:
    return pty.openpty()


def a_socket() -> Ends:
    ours, theirs = socket.socketpair()
    return theirs.detach(), ours.detach()


@pytest.fixture(params=[a_pipe, a_pipe_that_never_blocks, a_terminal, a_socket])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    make: Callable[[], Ends] = request.param
    reader, writer = make()
    with ExitStack() as closed:
        closed.callback(os.close, writer)
        closed.callback(close_if_open, reader)
        yield reader, writer


def close_if_open(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def events_at(fd: int, until: str) -> list[dict[str, Any]]:
    """Those that are to be read, up to one of that name."""
    text = b""
    while True:
        text += os.read(fd, 65536)
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1:] == b"\n"]
        if found and found[-1]["event"] == until:
            return found


def test_a_reader_that_has_stopped_is_told_later_what_it_has_missed(ends: Ends) -> None:
    """Telling never waits: else this test does not end. Our parent's descriptor stays as it was."""
    reader, writer = ends
    blocking = os.get_blocking(writer)
    with open(writer, "w", closefd=False) as stream, EventStream(stream) as events:
        events.tell("ready", listen="127.0.0.1:1")
        events.tell("vpn", state="connected")
        for count in range(MANY):
            events.tell("connections", count=count)
        events.tell("vpn", state="failed")
        events.tell("failed", error="vpn-failed")
        assert os.get_blocking(writer) is blocking
        seen = events_at(reader, "failed")
    figures = [event["count"] for event in seen if event["event"] == "connections"]
    left_out = [event["counts"] for event in seen if event["event"] == "left_out"]
    assert all(counts.keys() == {"connections"} for counts in left_out)
    assert sum(counts["connections"] for counts in left_out) == MANY - len(figures) > 0
    assert figures == sorted(figures)
    assert figures[-1] == MANY - 1
    kept = [event["event"] for event in seen if event["event"] not in ("connections", "left_out")]
    assert kept == ["ready", "vpn", "vpn", "failed"]


def test_a_reader_that_never_reads_again_does_not_keep_us(ends: Ends) -> None:
    _reader, writer = ends
    with open(writer, "w", closefd=False) as stream, EventStream(stream) as events:
        for count in range(MANY):
            events.tell("connections", count=count)


def read_to_the_end(fd: int) -> bytes:
    """Up to the end that a writer left to itself makes."""
    seen = b""
    while data := os.read(fd, 65536):
        seen += data
    for thread in threading.enumerate():
        if thread.name == "lines":
            thread.join(60)
            assert not thread.is_alive()
    return seen


def test_a_writer_left_to_itself_does_not_write_to_the_next_file_of_its_number(
    tmp_path: Path,
) -> None:
    reader, writer = a_pipe_that_never_blocks()
    long = "y" * 200_000  # written in pieces: more than any pipe holds
    with open(writer, "w", closefd=False) as stream, EventStream(stream) as events:
        events.tell("ended", reason=long)
    with (tmp_path / "next").open("w") as other:
        os.dup2(other.fileno(), writer)
    assert json.loads(read_to_the_end(reader))["reason"] == long
    os.close(writer)
    os.close(reader)
    assert (tmp_path / "next").read_text() == ""


def test_a_writer_left_to_itself_ends_after_the_line_that_is_under_way() -> None:
    reader, writer = a_pipe()
    with open(writer, "w") as stream, EventStream(stream) as events:
        for count in range(MANY):
            events.tell("connections", count=count)
    *_, last = read_to_the_end(reader).splitlines()
    os.close(reader)
    assert json.loads(last).get("count", 0) < MANY - LIMIT


def test_a_file_gets_every_event_that_is_told_in_its_time(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with path.open("w") as stream:
        stream.write("before\n")
        with EventStream(stream) as events:
            for state in ("connecting", "connected"):
                events.tell("vpn", state=state)
    first, *told = path.read_text().splitlines()
    assert first == "before"
    assert [json.loads(line)["state"] for line in told] == ["connecting", "connected"]


def test_what_is_no_descriptor_is_written_too() -> None:
    """A program may call `main` with a standard output of its own, or have none."""
    stream = io.StringIO()
    with EventStream(stream) as events:
        events.tell("ended", reason="stopped")
    assert json.loads(stream.getvalue()) == {"event": "ended", "reason": "stopped"}
    with EventStream(None) as events:
        events.tell("ended", reason="stopped")


# --- readers that are gone ---------------------------------------------------------------------


@pytest.fixture
def unread() -> Iterator[TextIO]:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        yield stream


async def test_that_the_reader_has_gone_is_raised(unread: TextIO) -> None:
    with pytest.raises(BrokenPipeError), EventStream(unread) as events:
        events.tell("ready", listen="")
        await events.raise_when_lost()


def test_that_the_reader_has_gone_is_known_at_the_end_at_the_latest(unread: TextIO) -> None:
    with pytest.raises(BrokenPipeError), EventStream(unread) as events:
        events.tell("ready", listen="")


def test_another_error_is_not_hidden_by_a_reader_that_has_gone(unread: TextIO) -> None:
    with pytest.raises(ZeroDivisionError), EventStream(unread) as events:
        events.tell("ready", listen="")
        raise ZeroDivisionError


async def test_who_waits_for_a_loss_can_be_cancelled() -> None:
    with EventStream(io.StringIO()) as events:
        with trio.move_on_after(0.01):
            await events.raise_when_lost()
        events.tell("ended", reason="stopped")


# --- plain lines ------------------------------------------------------------------------------


def test_lines_for_a_person_are_left_out_in_words() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, LineWriter(stream) as lines:
        for number in range(MANY):
            lines.put(f"line {number}", kind="vpn", weight=Weight.STATE)
        lines.put("last", kind="vpn", weight=Weight.STATE)
        text = ""
        while "last\n" not in text:
            text += os.read(reader, 65536).decode()
    os.close(reader)
    assert "lines were not read in time, and are left out." in text


# --- a whole process ---------------------------------------------------------------------------

_COMMAND = """
import signal, sys, types
import trio
from microvm.cli import socks5
from microvm.cli._json_events import EventStream
from microvm.cli._signals import ended_by_signals
from microvm.cli._status_line import StatusLine

class Proxy:
    address, asked = "127.0.0.1:1", 0
    @property
    def connections(self):
        self.asked += 1
        if self.asked == 10_000:
            sys.stderr.write("many\\n")
            sys.stderr.flush()
        return self.asked

async def session():
    async with ended_by_signals(signal.SIGTERM):
        await socks5._watch(Proxy(), StatusLine(None), events)

socks5.LOOK_EVERY_S = 0
with EventStream(sys.stdout) as events:
    trio.run(session)
"""


def test_sigterm_ends_a_command_whose_reader_has_stopped() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == b"many\n"  # it lives on, unread
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()
