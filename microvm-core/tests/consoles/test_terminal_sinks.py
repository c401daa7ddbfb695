"""Consoles at terminals: ours, and one made for the purpose."""

import contextlib
import os
import termios
import threading
import time
import tty

import pytest
import trio
import trio.testing

from microvm.consoles.client import ConsoleDoor
from microvm.consoles.hub import ConsoleHub
from microvm.consoles.pty_sink import PtySink
from microvm.consoles.stdio_sink import StdioSink


async def read_until(fd: int, ending: bytes) -> bytes:
    got = b""
    with trio.fail_after(30):
        while not got.endswith(ending):
            await trio.lowlevel.wait_readable(fd)
            got += os.read(fd, 4096)
    return got


@pytest.fixture
def terminal():
    """A person's terminal: the end that the person has, and ours."""
    person, ours = os.openpty()
    yield person, ours
    os.close(person)
    os.close(ours)


async def test_keys_reach_the_guest_and_its_words_the_person(served, terminal) -> None:
    person, ours = terminal
    cooked = termios.tcgetattr(ours)
    async with served(StdioSink(ours, ours)) as bench:
        bench.hub.feed(b"login: ")
        assert await read_until(person, b": ") == b"login: "
        os.write(person, b"root\r\x03")
        await bench.until_typed(b"root\r\x03")
    assert termios.tcgetattr(ours) == cooked


async def test_a_persons_terminal_gets_no_commands(served, terminal) -> None:
    """Row 63."""
    person, ours = terminal
    async with served(StdioSink(ours, ours)) as bench:
        bench.hub.feed(b"\x1b]0;owned\x07\x1b[1mbold\x1b[6n.")
        assert await read_until(person, b".") == b"\x1b[1mbold."


@pytest.mark.parametrize("keys", [b"ls\r\x1d", b"ls\r~."])
async def test_the_keys_that_leave_end_it_and_give_the_terminal_back(
    served, terminal, keys
) -> None:
    person, ours = terminal
    cooked = termios.tcgetattr(ours)
    sink = StdioSink(ours, ours)
    async with served(sink) as bench:
        await trio.testing.wait_all_tasks_blocked()
        os.write(person, keys)
        await bench.until_typed(b"ls\r")
        with trio.fail_after(30):
            await bench.ended.wait()
    assert sink.left
    assert termios.tcgetattr(ours) == cooked


async def test_one_can_leave_a_guest_that_reads_nothing(served, terminal) -> None:
    person, ours = terminal
    sink = StdioSink(ours, ours)
    async with served(sink) as bench:
        bench.reads = False
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(60):
            for _ in range(2000):
                await trio.lowlevel.wait_writable(person)
                os.write(person, b"x" * 1000)
            os.write(person, b"\x1d")
            await bench.ended.wait()
    assert sink.left
    assert sink.counters()["dropped_bytes"] > 1_000_000


async def test_a_terminal_that_has_stopped_is_given_back_all_the_same(terminal) -> None:
    """Row 62: a write to it hangs in a thread, and must not take the loop along."""
    person, ours = terminal
    cooked = termios.tcgetattr(ours)
    hub = ConsoleHub(lambda call: call())

    async def take(data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    door = ConsoleDoor(hub, take)
    rescued = threading.Event()

    def drain() -> None:
        rescued.set()
        os.set_blocking(person, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(person, 65536):
                time.sleep(0.01)

    rescue = threading.Timer(20, drain)
    rescue.start()
    try:
        async with trio.open_nursery() as nursery:
            door.serve_in(nursery)
            async with door.open() as console, trio.open_nursery() as sinking:
                sinking.start_soon(StdioSink(ours, ours).serve, console)
                for _ in range(8):
                    hub.feed(b"x" * 32768)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                sinking.cancel_scope.cancel()
            assert termios.tcgetattr(ours) == cooked
            assert not rescued.is_set()
            door.finish()
    finally:
        rescue.cancel()
        drain()


async def test_files_in_place_of_a_terminal_pass_as_they_are(served, tmp_path) -> None:
    (tmp_path / "in").write_bytes(b"~.\x1d typed")
    stdin = os.open(tmp_path / "in", os.O_RDONLY)
    stdout = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    try:
        async with served(StdioSink(stdin, stdout)) as bench:
            await bench.until_typed(b"~.\x1d typed")
            bench.hub.feed(b"\x1b]0;raw\x07\xff")
    finally:
        os.close(stdin)
        os.close(stdout)
    assert (tmp_path / "out").read_bytes() == b"\x1b]0;raw\x07\xff"


async def test_a_reader_of_ours_that_has_gone_is_told_and_ends_the_sink(served, caplog) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stdin = os.open(os.devnull, os.O_RDONLY)
    async with served(StdioSink(stdin, writer)) as bench:
        bench.hub.feed(b"x")
        with trio.fail_after(30):
            await bench.ended.wait()
    os.close(stdin)
    os.close(writer)
    assert "can't be shown any more: Broken pipe" in caplog.text


async def test_a_terminal_of_its_own_is_told_by_path_and_works_both_ways(served) -> None:
    sink = PtySink()
    async with served(sink) as bench:
        assert sink.path is not None
        assert os.stat(sink.path).st_mode & 0o777 == 0o600
        fd = os.open(sink.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            bench.hub.feed(b"login: ")
            assert await read_until(fd, b": ") == b"login: "
            os.write(fd, b"root\n")
            await bench.until_typed(b"root\n")
        finally:
            os.close(fd)
        # Whoever comes next finds it as before.
        fd = os.open(sink.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        bench.hub.feed(b"again.")
        assert await read_until(fd, b".") == b"again."
        os.close(fd)
    assert sink.path is None


async def test_a_flood_past_a_terminal_that_nobody_reads_is_bounded(served) -> None:
    """Row 62: the reader has stopped."""
    sink = PtySink()
    async with served(sink) as bench:
        for _ in range(64):
            bench.hub.feed(bytes(64 * 1024))
            await trio.sleep(0.001)
        assert bench.hub.counters()["dropped_bytes"] > 3 << 20
        fd = os.open(sink.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(fd)
        try:
            got = 0
            with trio.move_on_after(0.5):
                while True:
                    await trio.lowlevel.wait_readable(fd)
                    got += len(os.read(fd, 65536))
        finally:
            os.close(fd)
        assert 0 < got < 1 << 20
