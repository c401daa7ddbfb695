"""``microvm shell``: a fresh machine and an interactive shell in it."""

from __future__ import annotations

import argparse
import os
import sys

from microvm.cli import run as run_module
from microvm.cli._machine_options import add_machine_options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``shell``."""
    parser = subparsers.add_parser(
        "shell",
        help="open a shell in a fresh machine",
        description="Boot a machine and open a shell in it; the machine ends with the shell.",
    )
    add_machine_options(parser)
    parser.set_defaults(parser=parser, func=run, timing=False, json=False, cwd="/root", user=None)
    parser.set_defaults(copy_in=[], copy_out=[])


def run(args: argparse.Namespace) -> int:
    """Run the shell; with a terminal if we have one, else as a filter."""
    if args.console == "stdio":
        args.parser.error("the shell has the terminal; its console may be ring, file:PATH or pty")
    args.tty = sys.stdin.isatty() and sys.stdout.isatty()
    args.argv = ["/bin/sh", "-l"] if args.tty else ["/bin/sh"]
    term = os.environ.get("TERM", "dumb") if args.tty else "dumb"
    args.env = [f"TERM={term}"]
    return run_module.run(args)
