"""``microvm console``: sit down at a named machine's console, or talk through a named port."""

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
        "Ctrl-], or ~. at the beginning of a line, leaves; the machine goes on. With --port, "
        "talk to whatever opens a named port in the guest: bytes as they are, until that has "
        "closed it.",
    )
    parser.add_argument("name", metavar="NAME", help="see: microvm ls")
    parser.add_argument(
        "--port",
        metavar="PORT",
        help="a named port: one of those in microvm run --device console,ports=PORT",
    )
    parser.add_argument(
        "--device", default="console0", metavar="DEVICE", help="which has the port (console0)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Join it until the person leaves or the guest has printed its last."""
    from microvm.control.client import ControlClient

    if args.port is not None:
        with ControlClient(args.name) as client:
            sock = client.open_stream(args.device, args.port)
        _talk(sock)
        return 0
    with ControlClient(args.name) as client:
        client.ask("console")
        if sys.stdin.isatty():
            print("microvm: Ctrl-] or ~. leaves", file=sys.stderr)
        left = _join(client.take())
    if sys.stdin.isatty():
        print(f"\nmicrovm: {'left' if left else 'the console has ended'}", file=sys.stderr)
    return 0


def _talk(sock: socket.socket) -> None:
    """Carry our input to a port, and what comes to our output, until the guest has closed it."""
    import os
    import signal

    import trio

    from microvm.cli._signals import ended_by_signals
    from microvm.consoles.stdio_sink import STDIN, STDOUT
    from microvm.consoles.terminal import read_shared, write_shared
    from microvm.consoles.terminal_filter import TerminalFilter

    async def send(stream: trio.SocketStream) -> None:
        try:
            while chunk := await read_shared(STDIN):
                await stream.send_all(chunk)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # the reader finds out

    async def session() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        shown = TerminalFilter().feed if os.isatty(STDOUT) else bytes
        async with (
            ended_by_signals(signal.SIGTERM, signal.SIGHUP),
            stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(send, stream)
            try:
                async for chunk in stream:
                    await write_shared(STDOUT, shown(bytes(chunk)))
            except trio.BrokenResourceError:
                pass  # its machine's process has died
            nursery.cancel_scope.cancel()

    sock.setblocking(False)
    trio.run(session)


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
