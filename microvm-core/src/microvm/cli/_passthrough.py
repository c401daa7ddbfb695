"""Standard streams of this process joined to those of a guest command, byte for byte."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import tty as tty_module
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from microvm._groups import only_error
from microvm.abc import RunResult, TtySize
from microvm.cli import EXIT_SIGPIPE
from microvm.errors import BackendError

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.abc import GuestProcess

CHUNK = 65536

STDIN, STDOUT, STDERR = 0, 1, 2
OUTPUT_NAMES = {STDOUT: "Standard output", STDERR: "Standard error"}


async def run_passthrough(
    machine: Machine, argv: Sequence[str], *, tty: bool, **options: Any
) -> RunResult:
    """Run a command with our own stdin, stdout and stderr, and a terminal if `tty`."""
    size = _terminal_size() if tty else None
    async with machine.spawn(argv, tty=size, **options) as process:
        try:
            with _raw_terminal(enabled=tty):
                return await _joined(process, tty=tty)
        except BaseExceptionGroup as group:
            if group.split(SystemExit)[1] is None:  # one reader of both outputs has gone
                raise SystemExit(EXIT_SIGPIPE) from None
            raise only_error(group) from None


async def _joined(process: GuestProcess, *, tty: bool) -> RunResult:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_stdin, process)
        if tty:
            nursery.start_soon(_follow_terminal_size, process)
        async with trio.open_nursery() as outputs:
            outputs.start_soon(_copy_out, process.stdout, STDOUT)
            outputs.start_soon(_copy_out, process.stderr, STDERR)
        result = await process.wait()
        nursery.cancel_scope.cancel()
    return result


async def read_all_stdin() -> bytes:
    """All of standard input; empty when it is a terminal, where a person would have to end it."""
    if sys.stdin.isatty():
        return b""
    parts = []
    while chunk := await _read_stdin():
        parts.append(chunk)
    return b"".join(parts)


async def _read_stdin() -> bytes:
    """One chunk, without O_NONBLOCK: that flag would be shared with our parent's terminal."""
    try:
        await trio.lowlevel.wait_readable(STDIN)
    except OSError:
        # epoll refuses regular files and /dev/null (EPERM); these never block for long.
        await trio.lowlevel.checkpoint()
    try:
        return os.read(STDIN, CHUNK)
    except OSError:
        return b""  # closed, or a background job's terminal: nothing more will come


async def _send_stdin(process: GuestProcess) -> None:
    try:
        while chunk := await _read_stdin():
            await process.stdin.send_all(chunk)
        await process.stdin.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the command no longer reads; it may still write


async def _copy_out(stream: trio.abc.ReceiveStream, fd: int) -> None:
    """Write what the command prints to one of our own descriptors.

    In a worker thread: our reader may stall, and O_NONBLOCK would be set for all who share it.

    Returns also when the guest has gone in mid-command: `GuestProcess.wait` says how.

    Raises:
        SystemExit: with 141, as a shell reports SIGPIPE, when our reader has gone.
        BackendError: our output can't be written for another reason, such as a full disk.
    """
    try:
        async for chunk in stream:
            await trio.to_thread.run_sync(_write_all, fd, chunk, abandon_on_cancel=True)
    except trio.BrokenResourceError:
        return
    except BrokenPipeError:
        raise SystemExit(EXIT_SIGPIPE) from None
    except OSError as error:
        raise BackendError(
            f"{OUTPUT_NAMES[fd]} can't be written: {error.strerror}.",
            remedy="The command was ended. See where the output goes, then run it again.",
        ) from error


def _write_all(fd: int, chunk: bytes | bytearray) -> None:
    data = memoryview(chunk)
    while data:
        data = data[os.write(fd, data) :]


def _terminal_size() -> TtySize:
    size = shutil.get_terminal_size()
    return TtySize(rows=size.lines, cols=size.columns)


async def _follow_terminal_size(process: GuestProcess) -> None:
    with trio.open_signal_receiver(signal.SIGWINCH) as changes:
        async for _ in changes:
            await process.resize(_terminal_size())


@contextmanager
def _raw_terminal(*, enabled: bool) -> Iterator[None]:
    """Each key goes to the guest's terminal, Ctrl-C too; ours is as before afterwards."""
    if not enabled or not os.isatty(STDIN):
        yield
        return
    saved = termios.tcgetattr(STDIN)
    tty_module.setraw(STDIN, termios.TCSADRAIN)  # what was typed ahead stays
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, saved)
