"""A machine and its console: from the guest's first byte to its last, and what is counted of it."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.abc import HalfCloseableStream

from microvm import ConfigError, ConsoleConfig, Machine
from microvm.abc import ConsoleSink
from microvm.consoles.served import SinkService
from microvm.metrics import MachineMetrics
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import ScriptedMachine, scripted_machine

Build = Callable[..., Machine]


@pytest.fixture
def machine_of(tmp_path: Path) -> Build:
    return partial(scripted_machine, tiny_kernel(tmp_path / "kernel"))


async def panics(machine: ScriptedMachine) -> MachineOutcome:
    machine.say("booting")
    await trio.sleep(0.01)
    machine.say("Kernel panic - not syncing")
    return MachineOutcome(reason=OutcomeReason.PANIC, detail="It panicked.")


async def test_a_file_has_the_first_words_and_the_last(machine_of: Build, tmp_path: Path) -> None:
    console = ConsoleConfig(output="file", path=tmp_path / "log")
    async with machine_of(panics, console=console) as machine:
        assert machine.console_path == str(tmp_path / "log")
        await machine.wait()
    assert (tmp_path / "log").read_bytes() == b"booting\nKernel panic - not syncing\n"


async def test_a_file_has_the_last_words_of_a_machine_that_was_cancelled(
    machine_of: Build, tmp_path: Path
) -> None:
    async def talks(machine: ScriptedMachine) -> None:
        machine.say("last words")

    console = ConsoleConfig(output="file", path=tmp_path / "log")
    with trio.fail_after(30), trio.CancelScope() as scope:
        async with machine_of(talks, console=console):
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert (tmp_path / "log").read_bytes() == b"last words\n"


async def test_a_file_that_can_not_be_written_is_known_before_the_start(machine_of: Build) -> None:
    machine = machine_of(console=ConsoleConfig(output="file", path="/no/such/folder/log"))
    with pytest.raises(ConfigError, match=r"console\.path"):
        async with machine:
            pass


async def test_a_backend_without_a_console_says_so(machine_of: Build) -> None:
    machine = machine_of(console=ConsoleConfig(output="pty"), capabilities=frozenset())
    with pytest.raises(ConfigError, match=r"console: backend 'scripted' has no capability"):
        async with machine:
            pass


async def test_a_terminal_of_its_own_is_there_before_the_guest(machine_of: Build) -> None:
    async with machine_of(console=ConsoleConfig(output="pty")) as machine:
        assert machine.console_path is not None
        assert machine.console_path.startswith("/dev/pts/")
    assert machine.console_path is None


async def test_a_program_joins_the_console_and_leaves_it(machine_of: Build) -> None:
    async with machine_of() as machine:
        running = machine._running
        assert isinstance(running, ScriptedMachine)
        running.say("login:")
        async with await machine.open_console() as console:
            assert await console.receive_some() == b"login:\n"
            await console.send_all(b"root\n")
            with trio.fail_after(30):
                while running.typed != b"root\n":  # noqa: ASYNC110 - it is memory that changes
                    await trio.sleep(0.001)
        assert machine.metrics.console == {
            "printed_bytes": 7,
            "typed_bytes": 5,
            "dropped_bytes": 0,
        }
        await machine.stop()
        async with await machine.open_console() as console:
            assert [bytes(chunk) async for chunk in console] == [b"login:\n"]


class Sink(ConsoleSink):
    """Keeps what is printed; `fails` is raised out of `serve`."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.life: list[str] = []
        self.got = b""
        self._fails = fails

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self.life.append("open")
        yield
        self.life.append("closed")

    async def serve(self, console: HalfCloseableStream) -> None:
        if self._fails is not None:
            raise self._fails
        async for chunk in console:
            self.got += chunk
        self.life.append("end")

    def counters(self) -> dict[str, int]:
        return {"dropped_bytes": 3}


async def test_a_programs_own_sink_is_held_around_the_machine(machine_of: Build) -> None:
    sink = Sink()
    async with machine_of(panics, sink=sink) as machine:
        with trio.fail_after(30):
            await machine.wait_console()
        assert machine.metrics.console["dropped_bytes"] == 3
    assert sink.life == ["open", "end", "closed"]
    assert sink.got == b"booting\nKernel panic - not syncing\n"


async def test_a_sink_that_fails_is_logged_and_the_machine_goes_on(machine_of: Build, caplog):
    async with machine_of(sink=Sink(fails=ValueError("a bug"))) as machine:
        with trio.fail_after(30):
            await machine.wait_console()
        assert machine.outcome is None
    assert "The console's sink failed" in caplog.text


class SlowMachine(ScriptedMachine):
    """Its console is given a moment after it was asked for, as by a worker process."""

    def __init__(self) -> None:
        self.may_join = trio.Event()

    async def open_console(self) -> trio.SocketStream:
        await self.may_join.wait()
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(b"its only words")
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))


async def test_who_leaves_a_machine_at_once_has_what_it_said() -> None:
    sink = Sink()
    service = SinkService(sink)
    machine = SlowMachine()
    left = trio.Event()

    async def leave() -> None:
        await service.wait_joined()
        left.set()

    async with service.lifespan(), trio.open_nursery() as nursery:
        service.start(machine)
        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        assert not left.is_set()
        machine.may_join.set()
    assert sink.got == b"its only words"


async def test_a_sink_that_never_ends_does_not_hold_the_machine(machine_of: Build) -> None:
    class Stuck(Sink):
        async def serve(self, console: HalfCloseableStream) -> None:
            await trio.sleep_forever()

    with trio.fail_after(30):
        async with machine_of(sink=Stuck()):
            pass


async def test_metrics_are_plain_values(machine_of: Build) -> None:
    async with machine_of() as machine:
        metrics = machine.metrics
    assert isinstance(metrics, MachineMetrics)
    assert set(metrics.to_json()) == {"devices", "exits", "console", "timing"}
    assert "spawn" in metrics.timing
