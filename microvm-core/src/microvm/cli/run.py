"""``microvm run``: boot a machine, run one command in it, exit as the command did."""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
from collections.abc import Awaitable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from microvm.cli import EXIT_INTERRUPTED, EXIT_OWN_FAILURE
from microvm.cli._machine_options import add_machine_options, machine_config

if TYPE_CHECKING:
    from microvm._assembly import BackendChoice
    from microvm._machine import Machine
    from microvm.abc import CopyReport, RunResult
    from microvm.consoles.stdio_sink import StdioSink
    from microvm.forwards.addresses import ForwardWords
    from microvm.timeline import BootTimeline


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run``."""
    parser = subparsers.add_parser(
        "run",
        help="run a command in a fresh machine",
        description=(
            "Boot a machine, run a command in it and exit with the command's code (128+n for "
            "signal n, 125 when microvm itself failed). Standard input, output and error pass "
            "through as bytes. With --name or --console stdio the command may be left out: the "
            "machine then runs until its guest ends, or until it is stopped."
        ),
    )
    add_machine_options(parser)
    parser.add_argument("--tty", action="store_true", help="give the command a terminal")
    parser.add_argument("--timing", action="store_true", help="print the boot's phases (stderr)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the output"
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--cwd", metavar="DIR", help="start in this directory of the guest")
    parser.add_argument("--user", metavar="NAME", help="run as this user of the guest")
    parser.add_argument(
        "--copy-in",
        action="append",
        default=[],
        metavar="PATH:GUEST_PATH",
        help="copy a file or directory into the guest before the command",
    )
    parser.add_argument(
        "--copy-out",
        action="append",
        default=[],
        metavar="GUEST_PATH:PATH",
        help="copy one out of it when the command has ended",
    )
    # The rest of the line, so that the command's own options stay its own.
    parser.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="-- ARGV", help="the command and its arguments"
    )
    parser.set_defaults(func=lambda args: run(_with_command(parser, args)))


def _with_command(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    if args.argv[:1] == ["--"]:
        args.argv = args.argv[1:]
    at_console = args.console == "stdio"
    if not args.argv and not (args.name or at_console):
        parser.error("name a command to run: microvm run -- uname -a")
    if not args.argv and args.json:
        parser.error("--json is about a command, and there is none")
    if not args.argv and args.copy_out:
        parser.error("--copy-out is for when a command has ended, and there is none")
    if at_console and (args.tty or args.json):
        parser.error("--console stdio has the terminal: leave out --tty and --json")
    return args


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the process's exit code."""
    from microvm.cli._process_start import timeline_since_process_start
    from microvm.errors import MicrovmError

    timeline = timeline_since_process_start()
    # Importing makes garbage collection run again and again over what is there to stay: a tenth
    # of the time to the launch. Put on again when the guest is up.
    gc.disable()
    try:
        return _run(args, timeline)
    except MicrovmError as error:
        if not args.json:
            raise
        print(json.dumps(_failure(error, timeline)))
        return EXIT_OWN_FAILURE


def _run(args: argparse.Namespace, timeline: BootTimeline) -> int:
    config = machine_config(args)
    # both are told before anything starts
    copies_in = [_split_paths("--copy-in", *word.rpartition(":")) for word in args.copy_in]
    copies_out = [_split_paths("--copy-out", *word.partition(":")) for word in args.copy_out]
    forwards = _parse_forwards(args.forward)
    options = {"env": dict(map(_split_env, args.env)), "cwd": args.cwd, "user": args.user}

    from microvm._assembly import assemble
    from microvm.plugins import installed_plugins

    assembly = assemble(config, installed_plugins(), timeline)
    _tell_choice(assembly.backend)
    with assembly.platform.prelaunch(assembly.plan):
        import trio

        from microvm._machine import Machine
        from microvm.cli._signals import ended_by_signals

        sink = _stdio_sink(args)
        machine = Machine(config, assembly=assembly, console=sink)

        async def session() -> RunResult | None:
            async with ended_by_signals(signal.SIGTERM, signal.SIGHUP), machine:
                import microvm.cli._passthrough  # noqa: F401 - while the guest boots

                _tell_console(args, machine)
                for words in forwards:
                    await machine.forward(**words)
                if args.argv:
                    await machine.wait_ready()
                gc.freeze()
                gc.enable()
                for local, guest in copies_in:
                    await _copied(machine.copy_in(local, guest))
                result = await _unless_left(machine, sink, _body(args, machine, options))
                timeline.mark("command")
                for guest, local in copies_out:
                    await _copied(machine.copy_out(guest, local))
            timeline.mark("stop")
            return result

        result = trio.run(session)
    if args.json and result is not None:
        print(json.dumps(_report(machine, result, timeline)))
    if args.timing:
        _print_timing(timeline, machine.exit_counts)
    return _exit_code(args, machine, result)


def _exit_code(args: argparse.Namespace, machine: Machine, result: RunResult | None) -> int:
    """The command's; without one, whether the machine came to a good end."""
    if result is not None:
        return result.returncode
    if args.argv:
        return EXIT_INTERRUPTED  # the person at the console left in the middle of it
    from microvm.outcome import OutcomeReason

    outcome = machine.outcome
    assert outcome is not None
    good = {OutcomeReason.STOPPED, OutcomeReason.POWERED_OFF, OutcomeReason.RESET}
    if outcome.reason in good:
        return 0
    print(f"microvm: {outcome.detail}", file=sys.stderr)
    return EXIT_OWN_FAILURE


def _stdio_sink(args: argparse.Namespace) -> StdioSink | None:
    if args.console != "stdio":
        return None
    from microvm.consoles.stdio_sink import StdioSink

    if sys.stdin.isatty():
        print("microvm: at the guest's console; Ctrl-] or ~. ends the machine", file=sys.stderr)
    return StdioSink()


def _tell_console(args: argparse.Namespace, machine: Machine) -> None:
    if args.console == "pty":
        print(f"microvm: the console is at {machine.console_path}", file=sys.stderr)


async def _unless_left(
    machine: Machine, sink: StdioSink | None, body: Coroutine[Any, Any, RunResult | None]
) -> RunResult | None:
    """What the body returns; None if the person at the console leaves before."""
    import trio

    from microvm._groups import only_error

    result: RunResult | None = None

    async def watch(scope: trio.CancelScope) -> None:
        await machine.wait_console()
        if sink is not None and sink.left:
            scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            result = await body
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only_error(group) from None
    return result


async def _body(
    args: argparse.Namespace, machine: Machine, options: dict[str, Any]
) -> RunResult | None:
    """The command; without one, the machine's life."""
    if args.argv:
        return await _command(args, machine, options)
    await machine.wait()
    return None


def _tell_choice(choice: BackendChoice) -> None:
    """Tell a person that a backend had to be passed over; a program has the log and ``--json``."""
    stderr: TextIO | None = sys.stderr  # None where the program was started with it closed
    if choice.passed_over and stderr is not None and stderr.isatty():
        for report in choice.passed_over:
            print(f"microvm: not on {report.backend}: {report.reason}", file=sys.stderr)
        print(f"microvm: on {choice.name}: {choice.report.reason}", file=sys.stderr)


async def _command(
    args: argparse.Namespace, machine: Machine, options: dict[str, Any]
) -> RunResult:
    from microvm.cli._passthrough import run_collected, run_passthrough

    if args.json:
        return await run_collected(machine, args.argv, **options)
    typed = args.console != "stdio"  # else what is typed is the console's
    return await run_passthrough(machine, args.argv, tty=args.tty, stdin=typed, **options)


def _parse_forwards(words: list[str]) -> list[ForwardWords]:
    if not words:  # the import is not for free
        return []
    from microvm.forwards.addresses import parse_forward

    return [parse_forward(word) for word in words]


def _split_paths(option: str, first: str, colon: str, second: str) -> tuple[str, str]:
    from microvm.errors import ConfigError

    if not (first and colon and second):
        raise ConfigError(f"{option} takes two paths with a colon between them.")
    return first, second


async def _copied(copy: Awaitable[CopyReport]) -> None:
    """Wait for a copy, and say on standard error what was left out of it."""
    from microvm.errors import ConfigError, MicrovmError

    try:
        report = await copy
    except MicrovmError:
        raise
    except OSError as error:
        raise ConfigError(f"A file can't be copied: {error}.") from error
    for name in report.skipped:
        print(f"microvm: not copied, no file or directory: {name}", file=sys.stderr)


def _split_env(word: str) -> tuple[str, str]:
    from microvm.errors import ConfigError

    name, equals, value = word.partition("=")
    if not name or not equals:
        raise ConfigError(f"--env takes NAME=VALUE, not {word!r}.")
    return name, value


def _text(data: bytes) -> str:
    """Bytes for a JSON string: UTF-8 as it is, any other byte as a backslash escape."""
    return data.decode("utf-8", errors="backslashreplace")


def _report(machine: Machine, result: RunResult, timeline: BootTimeline) -> dict[str, Any]:
    return {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "stdout": _text(result.stdout),
        "stderr": _text(result.stderr),
        "backend": machine.backend.name,
        "reason": machine.backend.reason,
        "timing": {phase: round(ms, 3) for phase, ms in timeline.phases.items()},
        "exit_counts": dict(machine.exit_counts),
    }


def _failure(error: Any, timeline: BootTimeline) -> dict[str, Any]:
    return {
        "error": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "problems": [str(problem) for problem in getattr(error, "problems", ())],
        "console": list(error.console),
        "timing": {phase: round(ms, 3) for phase, ms in timeline.phases.items()},
    }


def _print_timing(timeline: BootTimeline, exit_counts: Mapping[str, int]) -> None:
    for phase, ms in timeline.phases.items():
        print(f"{phase:>10} {ms:9.1f} ms", file=sys.stderr)
    print(f"{'total':>10} {timeline.total_ms:9.1f} ms", file=sys.stderr)
    if exit_counts:
        print(f"{'exits':>10} {sum(exit_counts.values()):9}", file=sys.stderr)
        for place, count in exit_counts.items():
            print(f"{count:20}  {place}", file=sys.stderr)
