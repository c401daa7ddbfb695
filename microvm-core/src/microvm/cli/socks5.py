"""``microvm socks5``: a machine whose network is to be had at a SOCKS5 proxy, until Ctrl-C."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from typing import TYPE_CHECKING, Final

from microvm.cli import EXIT_OWN_FAILURE
from microvm.cli._json_events import EventStream, say_ready
from microvm.cli._line_writer import LineWriter
from microvm.cli._log_lines import logged_by
from microvm.cli._machine_options import add_machine_options, machine_config

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.cli._status_line import StatusLine
    from microvm.config import MachineConfig
    from microvm.forwards import TcpAddress, UnixAddress
    from microvm.forwards.forward import Forward
    from microvm.outcome import MachineOutcome

DEFAULT_LISTEN: Final = "127.0.0.1:1080"
LOOK_EVERY_S: Final = 1.0
_TCP: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]:|(?P<v4>[0-9.]+):)?(?P<port>\d{1,5})")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``socks5``."""
    parser = subparsers.add_parser(
        "socks5",
        help="offer a fresh machine's network as a SOCKS5 proxy",
        description=(
            "Boot a machine and offer on this host a SOCKS5 proxy whose other end is the machine: "
            "its network, its name servers. Serves until Ctrl-C. Prints the proxy's address."
        ),
    )
    add_machine_options(parser)
    parser.set_defaults(mem_size_mib=64)
    parser.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="ADDR:PORT|unix:PATH",
        help=f"where programs of this host find it (default: {DEFAULT_LISTEN}; port 0: one is "
        "chosen)",
    )
    parser.add_argument(
        "--login-file",
        metavar="FILE",
        help="a file of two lines, a name and a password, that clients must give; without it every "
        "user of this host can use a port",
    )
    parser.add_argument(
        "--json", action="store_true", help="print what happens, one JSON object a line"
    )
    parser.set_defaults(func=run)


def parse_listen(text: str, option: str = "--listen") -> TcpAddress | UnixAddress:
    """Where ``--listen``, or an option of another name, says to listen.

    Raises:
        ConfigError: it is no such place.
    """
    from microvm.errors import ConfigError
    from microvm.forwards import TcpAddress, UnixAddress

    if text.startswith("unix:"):
        return UnixAddress(path=text.removeprefix("unix:"))
    match = _TCP.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{option} takes ADDR:PORT or unix:PATH, not {text!r}.",
            remedy=f"For example {DEFAULT_LISTEN}, [::1]:1080 or unix:/run/user/1000/socks.sock.",
        )
    host = match["v6"] or match["v4"] or "127.0.0.1"
    return TcpAddress(host=host, port=int(match["port"]))


def read_login(path: str) -> tuple[str, str]:
    """A name and a password, from a file's first two lines.

    Raises:
        ConfigError: it can't be read, or has something else.
    """
    from microvm._secret_lines import read_lines
    from microvm.errors import ConfigError

    lines = read_lines(path)
    if len(lines) < 2 or not lines[0] or not lines[1]:
        raise ConfigError(f"--login-file {path} must have a name and a password, a line each.")
    return lines[0], lines[1]


def run(args: argparse.Namespace) -> int:
    """Serve; returns the process's exit code."""
    from microvm.errors import MicrovmError

    if not args.json:
        return _run(args, None)
    with EventStream(sys.stdout) as events:
        try:
            return _run(args, events)
        except MicrovmError as error:
            events.tell(
                "failed",
                error=error.code,
                message=error.message,
                remedy=error.remedy,
                console=list(error.console),
            )
            return EXIT_OWN_FAILURE


def _config(args: argparse.Namespace) -> MachineConfig:
    """A machine that starts the server as it boots, and has a network if none was given."""
    import attrs

    if not args.net:
        args.net = ["passt"]
    config = machine_config(args)
    return attrs.evolve(config, provisioners=(*config.provisioners, "socks5"))


def _run(args: argparse.Namespace, events: EventStream | None) -> int:
    import trio

    from microvm._machine import Machine
    from microvm.cli._signals import ended_by_signals
    from microvm.cli._status_line import status_line

    listen = parse_listen(args.listen)
    login = None if args.login_file is None else read_login(args.login_file)
    machine = Machine(_config(args))

    async def session(status: StatusLine) -> MachineOutcome:
        async with ended_by_signals(signal.SIGTERM, signal.SIGHUP), machine:
            status.show(f"microvm: booting on {machine.backend.name}")
            if events is not None:
                events.tell_starting(machine)
            async with await _open(machine, listen, login) as proxy, trio.open_nursery() as nursery:
                status.clear()
                say_ready(machine, proxy, events)
                nursery.start_soon(_watch, proxy, status, events)
                if events is not None:
                    nursery.start_soon(events.raise_when_lost)
                outcome = await machine.wait()
                nursery.cancel_scope.cancel()
        return outcome

    with (
        LineWriter(sys.stderr) as lines,
        logged_by(lines),
        status_line(sys.stderr if events is None else None) as status,
    ):
        outcome = trio.run(session, status)
    if events is None:
        print(f"microvm: the machine has ended. {outcome.detail}", file=sys.stderr)
    else:
        events.tell("ended", reason=outcome.reason.value, detail=outcome.detail)
    return EXIT_OWN_FAILURE


async def _open(
    machine: Machine, listen: TcpAddress | UnixAddress, login: tuple[str, str] | None
) -> Forward:
    from microvm.forwards import UnixAddress

    if isinstance(listen, UnixAddress):
        return await machine.socks5(path=listen.path, login=login)
    return await machine.socks5(host=listen.host, port=listen.port, login=login)


async def _watch(proxy: Forward, status: StatusLine, events: EventStream | None) -> None:
    """Tell how many connections there are, when that changes."""
    import trio

    told = None
    while True:
        count = proxy.connections
        status.show(f"microvm: SOCKS5 at {proxy.address}, connections: {count}. Ctrl-C ends it")
        if events is not None and count != told:
            events.tell("connections", count=count)
        told = count
        await trio.sleep(LOOK_EVERY_S)
