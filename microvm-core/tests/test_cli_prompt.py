"""Questions at a terminal: a real one, made for the test."""

import os
import pty
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from microvm.cli._prompt import Prompt
from microvm.cli._status_line import StatusLine

LFLAG = 3


class Person:
    """Who sits at the terminal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def types(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    async def sees(self, text: bytes) -> None:
        with trio.fail_after(30):
            while text not in self.seen:
                await trio.lowlevel.wait_readable(self.fd)
                self.seen += os.read(self.fd, 4096)


@pytest.fixture
def terminal() -> Iterator[tuple[Person, int]]:
    person, ours = os.openpty()
    yield Person(person), ours
    os.close(person)
    os.close(ours)


def prompt_at(fd: int, status: StatusLine | None = None) -> Prompt:
    return Prompt(fd, fd, status or StatusLine(None))


async def asked(prompt: Prompt, question: str, echo: bool, answers: list[str | None]) -> None:
    answers.append(await prompt.ask(question, echo=echo))


@pytest.mark.parametrize("echo", [True, False])
async def test_what_is_typed_is_the_answer_and_seen_only_if_it_may_be(terminal, echo) -> None:
    person, ours = terminal
    before = termios.tcgetattr(ours)
    answers: list[str | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt_at(ours), "Code? ", echo, answers)
        await person.sees(b"Code? ")
        person.types("sésame\r".encode())
    await person.sees(b"\r\n")
    assert answers == ["sésame"]
    assert ("sésame".encode() in person.seen) is echo
    assert termios.tcgetattr(ours) == before


async def test_what_was_typed_before_is_no_answer(terminal) -> None:
    """Somebody who pressed Enter at the status line has not sent an empty code."""
    person, ours = terminal
    person.types(b"\rold\r")
    answers: list[str | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt_at(ours), "Code? ", True, answers)
        await person.sees(b"Code? ")
        person.types(b"new\r")
    assert answers == ["new"]


async def test_a_question_called_off_gives_the_terminal_back_and_takes_nothing(terminal) -> None:
    """The server asks anew: its second question is answered, by nothing typed for its first."""
    person, ours = terminal
    before = termios.tcgetattr(ours)
    prompt = prompt_at(ours)
    answers: list[str | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt, "First? ", False, answers)
        await person.sees(b"First? ")
        assert not termios.tcgetattr(ours)[LFLAG] & termios.ECHO
        person.types(b"123")
        nursery.cancel_scope.cancel()
    assert termios.tcgetattr(ours) == before
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt, "Second? ", False, answers)
        await person.sees(b"Second? ")
        person.types(b"456\r")
    assert answers == ["456"]
    assert termios.tcgetattr(ours) == before


async def test_half_a_secret_is_not_left_to_the_shell(terminal) -> None:
    person, ours = terminal
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt_at(ours), "Code? ", False, [])
        await person.sees(b"Code? ")
        person.types(b"123")
        nursery.cancel_scope.cancel()
    tty.setraw(ours, termios.TCSANOW)  # as a shell with an editor reads
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 100)


async def test_two_questions_wait_for_each_other(terminal) -> None:
    person, ours = terminal
    prompt = prompt_at(ours)
    first: list[str | None] = []
    second: list[str | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt, "First? ", False, first)
        await person.sees(b"First? ")
        nursery.start_soon(asked, prompt, "Second? ", True, second)
        await trio.testing.wait_all_tasks_blocked()
        assert b"Second" not in person.seen
        person.types(b"one\r")
        await person.sees(b"Second? ")
        person.types(b"two\r")
    assert (first, second) == (["one"], ["two"])


@pytest.mark.parametrize(("keys", "answer"), [(b"\x04", None), (b"\r", ""), (b"ab\x04c\r", "abc")])
async def test_the_end_of_input_is_no_answer(terminal, keys, answer) -> None:
    person, ours = terminal
    answers: list[str | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt_at(ours), "Name? ", True, answers)
        await person.sees(b"Name? ")
        person.types(keys)
    assert answers == [answer]


async def test_a_terminal_that_hangs_up_is_the_end_of_input() -> None:
    theirs, ours = os.openpty()
    person = Person(theirs)
    answers: list[str | None] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asked, prompt_at(ours), "Name? ", False, answers)
            await person.sees(b"Name? ")
            os.close(theirs)
    finally:
        os.close(ours)
    assert answers == [None]


async def test_the_status_line_does_not_write_over_a_question(terminal) -> None:
    person, ours = terminal
    status = StatusLine(ours)
    status.show("connecting")
    answers: list[str | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, prompt_at(ours, status), "Code? ", False, answers)
        await person.sees(b"Code? ")
        status.show("still connecting")
        person.types(b"1\r")
    status.show("connected")
    await person.sees(b"\r\x1b[Kconnected")
    assert person.seen.startswith(b"\r\x1b[Kconnecting\r\x1b[KCode? ")
    assert b"still" not in person.seen


# --- the command, at its own terminal ---------------------------------------------------------

PATIENCE_S = 60


class Command:
    """``microvm vpn run`` at a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # pragma: no cover - another program from here on
            os.execv(sys.executable, [sys.executable, "-m", "microvm", "vpn", "run", *words])
        self.before = self.settings()
        self.person = Person(self.fd)

    def settings(self) -> list[Any]:
        # Linux answers at the person's end for the other (tty_ioctl.c, tty_mode_ioctl), and goes on
        # doing so when the command has ended.
        return termios.tcgetattr(self.fd)

    async def ended(self) -> int:
        """Read to its end all that it says; its exit code."""
        with trio.fail_after(PATIENCE_S), suppress(OSError):  # EIO: it has gone
            while True:
                await trio.lowlevel.wait_readable(self.fd)
                self.person.seen += os.read(self.fd, 4096)
        _, status = await trio.to_thread.run_sync(os.waitpid, self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    async def reaches_its_second_question(self) -> None:
        with trio.fail_after(PATIENCE_S):
            await self.person.sees(b"User name for the VPN: ")
            self.person.types(b"me\r")
            await self.person.sees(b"Password for the VPN: ")
        assert not self.settings()[LFLAG] & termios.ECHO


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    (tmp_path / "c.ovpn").write_text("client\nremote a\nauth-user-pass\n<ca>\n</ca>\n")
    command = Command(str(tmp_path / "c.ovpn"))
    yield command
    os.close(command.fd)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda command: command.person.types(b"secr\x03"), 130),
        (lambda command: os.kill(command.pid, signal.SIGTERM), 143),
        (lambda command: os.kill(command.pid, signal.SIGHUP), 129),
    ],
    ids=["ctrl-c", "sigterm", "sighup"],
)
async def test_a_command_ended_at_a_question_gives_its_terminal_back(command, end, code) -> None:
    await command.reaches_its_second_question()
    end(command)
    assert await command.ended() == code
    assert command.settings() == command.before
    assert b"Traceback" not in command.person.seen
    assert b"secr" not in command.person.seen


async def test_a_question_without_an_answer_says_what_to_do(command) -> None:
    await command.reaches_its_second_question()
    command.person.types(b"\x04")
    await command.person.sees(b"Password for the VPN: there was no answer.")
    await command.person.sees(b"--auth-file")
    assert await command.ended() == 125
    assert command.settings() == command.before
