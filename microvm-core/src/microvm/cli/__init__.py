"""The command line: one module a subcommand.

Each module has `add_parser(subparsers)`, which sets the default `func`, a function of the parsed
arguments that returns the exit code. Parsing imports nothing heavy; `func` does.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import microvm

COMMANDS = (
    "run",
    "shell",
    "socks5",
    "vpn",
    "ls",
    "console",
    "stats",
    "balloon",
    "stop",
    "cp",
    "doctor",
    "plugins",
    "image",
)
"""Each is a module of this package."""

EXIT_OWN_FAILURE = 125
"""microvm itself failed, and no command ran to give an exit code. Docker's number for it."""
EXIT_INTERRUPTED = 130
EXIT_SIGPIPE = 141
"""As a shell reports a program whose reader has gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    _open_standard_descriptors()
    words = sys.argv[1:] if argv is None else list(argv)
    # The others' modules are not needed to run one.
    wanted = words[:1] if words and words[0] in COMMANDS else COMMANDS
    args = build_parser(wanted).parse_args(words)
    level = os.environ.get("MICROVM_LOG", "warning").upper()
    logging.basicConfig(
        format="microvm: %(message)s",
        level=level if level in logging.getLevelNamesMapping() else "WARNING",
        stream=sys.stderr,
    )
    try:
        code: int = args.func(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException as error:
        return _exit_code(error)
    return code


def _open_standard_descriptors() -> None:
    """Where our parent has closed 0, 1 or 2, put /dev/null there.

    Else a socket of ours to QEMU would get the number, and what the guest prints be sent to it.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _exit_code(error: BaseException) -> int:
    """Say what went wrong, if it is for a person to know; anything unforeseen is raised again."""
    from microvm._groups import only_error
    from microvm.console import visible_lines
    from microvm.errors import MicrovmError

    if isinstance(error, BaseExceptionGroup):
        error = only_error(error)
    if isinstance(error, MicrovmError):
        print(f"microvm: {visible_lines(str(error))}", file=sys.stderr)
        return EXIT_OWN_FAILURE
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # What is still buffered would be tried again at exit, and complained about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_SIGPIPE
    raise error


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line's parser, for all subcommands or for some."""
    parser = argparse.ArgumentParser(
        prog="microvm", description="Run programs in Linux guests of their own."
    )
    parser.add_argument("--version", action="version", version=f"microvm {microvm.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in commands:
        import_module(f"microvm.cli.{name}").add_parser(subparsers)
    return parser
