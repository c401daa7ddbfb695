"""``microvm console``: sit down at a named machine's console."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``console``."""
    parser = subparsers.add_parser(
        "console",
        help="join a named machine's console",
        description="Show a machine's console, beginning with its last lines, and type to it. "
        "Ctrl-], or ~. at the beginning of a line, leaves; the machine goes on.",
    )
    parser.add_argument("name", metavar="NAME", help="see: microvm ls")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Join it until the person leaves or the guest has printed its last."""
    from microvm.control.client import ControlClient

    with ControlClient(args.name) as client:
        client.ask("console")
        if sys.stdin.isatty():
            print("microvm: Ctrl-] or ~. leaves", file=sys.stderr)
        left = _join(client.take())
    if sys.stdin.isatty():
        print(f"\nmicrovm: {'left' if left else 'the console has ended'}", file=sys.stderr)
    return 0


def _join(sock: socket.socket) -> bool:
    """Whether the person left."""
    import signal

    import trio

    from microvm.cli._signals import ended_by_signals
    from microvm.consoles.stdio_sink import StdioSink

    sink = StdioSink()

    async def session() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        # The terminal is given back also when we are told to go.
        async with ended_by_signals(signal.SIGTERM, signal.SIGHUP), stream:
            await sink.serve(stream)

    trio.run(session)
    return sink.left
