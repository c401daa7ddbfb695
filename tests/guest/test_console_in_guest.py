"""A guest's console: in files, at terminals, joined by other programs; and what is counted."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from microvm import ConsoleConfig, Machine, MachineConfig, OutcomeReason

pytestmark = pytest.mark.linux_guest

SHELL = ["sh", "-c", "exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1"]
"""A shell at the console, as a getty would start one."""

TYPED = b"".join(b"%04d %s\n" % (number, b"x" * 60) for number in range(80))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Named machines of this test are nobody else's."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


class Terminal:
    """A program at a terminal, and the person there."""

    def __init__(self, *words: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:  # pragma: no cover - another program from here on
            os.execv(sys.executable, [sys.executable, "-m", "microvm", *words])
        self.shown = b""

    def until(self, ending: bytes) -> None:
        """Wait until the terminal shows it; what is shown behind that is for the next call."""
        begin = len(self.shown)
        while ending not in self.shown[begin:]:
            self.shown += os.read(self._fd, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


async def test_a_file_has_what_the_guest_printed_byte_for_byte(tmp_path: Path) -> None:
    config = MachineConfig(console=ConsoleConfig(output="file", path=tmp_path / "log"))
    script = r"stty -F /dev/ttyS0 raw; printf '\033]0;t\007\001\377 end\n' >/dev/ttyS0"
    async with Machine(config) as machine:
        await machine.run(["sh", "-c", script], check=True)
    assert (tmp_path / "log").read_bytes().endswith(b"\x1b]0;t\x07\x01\xff end\n")


@pytest.mark.parametrize("isolation", ["inline", "process"])
async def test_a_file_has_a_panics_last_words(tmp_path: Path, isolation: str) -> None:
    console = ConsoleConfig(output="file", path=tmp_path / "log")
    async with Machine(MachineConfig(console=console, isolation=isolation)) as machine:
        await machine.wait_ready()
        # It dies when told to: a command that crashes at once may never say that it has started.
        crash = ["sh", "-c", "read go; echo c >/proc/sysrq-trigger"]
        async with machine.spawn(crash) as process:
            await process.stdin.send_all(b"\n")
            outcome = await machine.wait()
    assert outcome.reason is OutcomeReason.PANIC
    assert b"Kernel panic - not syncing" in (tmp_path / "log").read_bytes()


@pytest.mark.parametrize("isolation", ["inline", "process"])
async def test_a_program_types_into_a_shell_at_the_console(isolation: str, slower: int) -> None:
    async with Machine(MachineConfig(isolation=isolation)) as machine:
        await machine.wait_ready()
        with trio.fail_after(60 * slower):
            async with await machine.open_console() as console, machine.spawn(SHELL) as shell:
                shown = b""

                async def until(ending: bytes) -> None:
                    nonlocal shown
                    while ending not in shown:
                        shown += await console.receive_some()

                await until(b"# ")
                await console.send_all(b"echo $((6 * 7))$((8 * 9))\n")
                await until(b"4272")
                # More than the port, and what waits for it, hold at once.
                await console.send_all(b"cat >/tmp/typed\n")
                await until(b"typed\r\n")
                await console.send_all(TYPED)  # the terminal's echo of it may have gaps
                await console.send_all(b"\x04echo $((6 * 7))done\n")
                await until(b"42done")
                await console.send_all(b"exit\n")
                assert (await shell.wait()).exit_code == 0
        typed = await machine.run(["cat", "/tmp/typed"], check=True)
        assert typed.stdout == TYPED
        assert machine.metrics.console["typed_bytes"] > len(TYPED)


def test_a_person_works_at_the_console_of_run() -> None:
    terminal = Terminal("run", "--console", "stdio", "--", *SHELL)
    terminal.until(b"# ")
    terminal.type(b"tty; echo $((6 * 7))\r")
    terminal.until(b"/dev/ttyS0")
    terminal.until(b"42")
    terminal.type(b"exit 3\r")
    assert terminal.wait() == 3


def test_a_person_leaves_the_console_of_run_and_the_machine_ends() -> None:
    terminal = Terminal("run", "--console", "stdio", "--", *SHELL)
    terminal.until(b"# ")
    terminal.type(b"\x1d")
    assert terminal.wait() == 130


def test_without_a_command_a_machine_runs_until_it_is_stopped_by_name(cli) -> None:
    terminal = Terminal("run", "--console", "stdio", "--name", "web-1")
    terminal.until(b"ends the machine")
    while json.loads(cli("ls", "--json").stdout)["machines"] == []:
        pass
    while cli("stop", "web-1").returncode:
        pass
    assert terminal.wait() == 0


@pytest.fixture
def named(place: Path) -> Iterator[str]:
    """A named machine of another process, with a shell at its console."""
    process = subprocess.Popen(
        [sys.executable, "-m", "microvm", "run", "--name", "web-1", "--", "sh", "-c",
         f"echo up; {SHELL[2]}"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    yield "web-1"
    process.kill()
    process.stdout.close()
    process.wait()


def test_other_terminals_join_a_named_machines_console_one_after_the_other(named: str) -> None:
    for word in (b"one", b"two"):
        terminal = Terminal("console", named)
        terminal.until(b"# ")
        terminal.type(b"echo $((6 * 7))%s\r" % word)
        terminal.until(b"42" + word)
        terminal.type(b"\r~.")
        assert terminal.wait() == 0


def test_stats_of_a_named_machine_tell_of_its_devices(cli, named: str) -> None:
    stats = json.loads(cli("stats", named, "--json").stdout)
    vsock = stats["devices"]["vsock0"]
    assert vsock["notifications"] > 0
    assert vsock["interrupts"] > 0
    assert vsock["connections"] >= 1
    assert stats["console"]["printed_bytes"] > 0
    assert {"kernel", "agent"} <= set(stats["timing"])


@pytest.mark.parametrize("isolation", ["inline", "process"])
async def test_metrics_grow_with_what_is_done(isolation: str) -> None:
    async with Machine(MachineConfig(isolation=isolation)) as machine:
        await machine.run(["true"])
        before = machine.metrics.devices["vsock0"]
        await machine.run(["true"])
        after = machine.metrics.devices["vsock0"]
    assert after["notifications"] > before["notifications"]
    assert after["interrupts"] > before["interrupts"]


def test_a_terminal_of_its_own_is_told_and_works(cli) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "microvm", "run", "--console", "pty", "--", *SHELL],
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert "the console is at /dev/pts/" in said
        fd = os.open(said.split()[-1], os.O_RDWR | os.O_NOCTTY)
        shown = b""
        while b"# " not in shown:
            shown += os.read(fd, 4096)
        os.write(fd, b"exit 4\n")
        assert process.wait() == 4
        os.close(fd)
