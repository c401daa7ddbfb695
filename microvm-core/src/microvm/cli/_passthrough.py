"""Standard streams of this process joined to those of a guest command, byte for byte."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import trio

from microvm._groups import only_error
from microvm.abc import RunResult, TtySize
from microvm.cli import EXIT_SIGPIPE
from microvm.consoles.terminal import raw_terminal, read_shared, write_shared
from microvm.errors import BackendError, GuestError

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.abc import GuestProcess

MAX_COLLECTED_BYTES = 64 * 1024 * 1024
"""Of each stream with --json; the guest is not trusted to stop by itself."""

STDIN, STDOUT, STDERR = 0, 1, 2
OUTPUT_NAMES = {STDOUT: "Standard output", STDERR: "Standard error"}


async def run_passthrough(
    machine: Machine, argv: Sequence[str], *, tty: bool, stdin: bool = True, **options: Any
) -> RunResult:
    """Run a command with our own stdout, stderr and, if `stdin`, stdin; a terminal if `tty`."""
    size = _terminal_size() if tty else None
    async with machine.spawn(argv, tty=size, **options) as process:
        try:
            with raw_terminal(STDIN, enabled=tty):
                return await _joined(
                    process,
                    _copy_out(process.stdout, STDOUT),
                    _copy_out(process.stderr, STDERR),
                    tty=tty,
                    stdin=stdin,
                )
        except BaseExceptionGroup as group:
            if group.split(SystemExit)[1] is None:  # one reader of both outputs has gone
                raise SystemExit(EXIT_SIGPIPE) from None
            raise only_error(group) from None


async def run_collected(machine: Machine, argv: Sequence[str], **options: Any) -> RunResult:
    """Run a command with our own stdin, and keep what it prints.

    Raises:
        GuestError: it printed more than `MAX_COLLECTED_BYTES` on one of its streams.
    """
    stdout, stderr = bytearray(), bytearray()
    async with machine.spawn(argv, **options) as process:
        try:
            result = await _joined(
                process, _collect(process.stdout, stdout), _collect(process.stderr, stderr)
            )
        except BaseExceptionGroup as group:
            raise only_error(group) from None
    return attrs.evolve(result, stdout=bytes(stdout), stderr=bytes(stderr))


async def _joined(
    process: GuestProcess,
    *outputs: Coroutine[Any, Any, None],
    tty: bool = False,
    stdin: bool = True,
) -> RunResult:
    """Feed a command our stdin, or none, and drain its streams, until it ends."""

    async def drain(output: Coroutine[Any, Any, None]) -> None:
        await output

    async with trio.open_nursery() as nursery:
        if stdin:
            nursery.start_soon(_send_stdin, process)
        else:
            nursery.start_soon(process.stdin.aclose)
        if tty:
            nursery.start_soon(_follow_terminal_size, process)
        async with trio.open_nursery() as draining:
            for output in outputs:
                draining.start_soon(drain, output)
        result = await process.wait()
        nursery.cancel_scope.cancel()
    return result


async def _collect(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    """As `_copy_out`, but into memory."""
    try:
        async for chunk in stream:
            into += chunk
            if len(into) > MAX_COLLECTED_BYTES:
                raise GuestError(
                    f"The command printed more than {MAX_COLLECTED_BYTES} bytes.",
                    remedy="Run it without --json: its output then passes through unbounded.",
                )
    except trio.BrokenResourceError:
        return


async def _send_stdin(process: GuestProcess) -> None:
    try:
        while chunk := await read_shared(STDIN):
            await process.stdin.send_all(chunk)
        await process.stdin.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the command no longer reads; it may still write


async def _copy_out(stream: trio.abc.ReceiveStream, fd: int) -> None:
    """Write what the command prints to one of our own descriptors.

    Returns also when the guest has gone in mid-command: `GuestProcess.wait` says how.

    Raises:
        SystemExit: with 141, as a shell reports SIGPIPE, when our reader has gone.
        BackendError: our output can't be written for another reason, such as a full disk.
    """
    try:
        async for chunk in stream:
            await write_shared(fd, chunk)
    except trio.BrokenResourceError:
        return
    except BrokenPipeError:
        raise SystemExit(EXIT_SIGPIPE) from None
    except OSError as error:
        raise BackendError(
            f"{OUTPUT_NAMES[fd]} can't be written: {error.strerror}.",
            remedy="The command was ended. See where the output goes, then run it again.",
        ) from error


def _terminal_size() -> TtySize:
    size = shutil.get_terminal_size()
    return TtySize(rows=size.lines, cols=size.columns)


async def _follow_terminal_size(process: GuestProcess) -> None:
    with trio.open_signal_receiver(signal.SIGWINCH) as changes:
        async for _ in changes:
            await process.resize(_terminal_size())
