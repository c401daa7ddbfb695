"""Progress is a bar on a terminal, a line per step in a log, and nothing when quiet."""

import io

from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.image.progress import Bar, Lines, Silent, progress_for, render


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    assert isinstance(progress_for(Terminal()), Bar)
    assert isinstance(progress_for(io.StringIO()), Lines)
    assert isinstance(progress_for(Terminal(), quiet=True), Silent)


def test_a_log_gets_one_line_for_a_step() -> None:
    log = io.StringIO()
    lines = Lines(log)
    for done in range(100):
        lines.update("building", done, 100)
    lines.update("packing", 0, 0)
    lines.close()
    assert log.getvalue() == "microvm: building\nmicrovm: packing\n"


def test_a_bar_is_drawn_ten_times_a_second_at_most() -> None:
    clock, screen = Clock(), Terminal()
    bar = Bar(screen, clock=clock, columns=lambda: 80)
    for step in range(1000):
        clock.now = step / 1000
        bar.update("building", step, 1000)
    assert 9 <= screen.getvalue().count("\r") <= 10


def test_a_finished_step_leaves_one_line_with_its_time() -> None:
    clock, screen = Clock(), Terminal()
    bar = Bar(screen, clock=clock, columns=lambda: 80)
    bar.update("building", 0, 10)
    clock.now = 2.0
    bar.update("packing", 0, 10)
    clock.now = 2.5
    bar.close()
    lines = [line.rsplit("\x1b[K")[-1] for line in screen.getvalue().split("\n")[:-1]]
    assert lines == ["building: 2.0 s", "packing: 0.5 s"]


def test_closing_a_bar_that_never_drew_writes_nothing() -> None:
    screen = Terminal()
    Bar(screen).close()
    assert screen.getvalue() == ""


def test_a_line_never_reaches_the_last_column() -> None:
    screen = Terminal()
    Bar(screen, columns=lambda: 20).update("a label that is longer than that", 1, 2)
    assert len(screen.getvalue().rsplit("\x1b[K")[-1]) == 19


def test_an_unknown_total_shows_the_time_alone() -> None:
    assert render("unpacking", 7, 0, 3.2) == "unpacking ... 3 s"


@given(st.integers(-5, 200), st.integers(1, 100))
def test_a_bar_is_full_only_when_all_is_done(done: int, total: int) -> None:
    assert ("100%" in render("x", done, total, 0.0)) == (done == total)
