"""``microvm vpn run``: a VPN in a machine of its own, offered as a SOCKS5 proxy, until Ctrl-C."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from microvm.cli import EXIT_OWN_FAILURE
from microvm.cli._backlog import Weight
from microvm.cli._json_events import EventStream, say_ready
from microvm.cli._line_writer import LineWriter
from microvm.cli._log_lines import logged_by
from microvm.cli._machine_options import add_machine_options, machine_config
from microvm.cli.socks5 import DEFAULT_LISTEN, parse_listen

if TYPE_CHECKING:
    from microvm.cli._status_line import StatusLine
    from microvm.config import MachineConfig
    from microvm.forwards.forward import Forward
    from microvm.outcome import MachineOutcome
    from microvm_guest.openvpn import Credentials, OpenVpnTunnel, VpnStatus

EXIT_VPN_FAILED: Final = 1
"""The machine works, and the VPN will not come up."""
EXIT_NO_ANSWER: Final = 2
LOOK_EVERY_S: Final = 1.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``vpn`` and what is below it."""
    parser = subparsers.add_parser("vpn", help="connect to a VPN, and offer it as a SOCKS5 proxy")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser(
        "run",
        help="connect, and serve until Ctrl-C",
        description=(
            "Boot a machine, connect it to an OpenVPN server, and offer on this host a SOCKS5 "
            "proxy that leads through the VPN or nowhere. Nothing of this host's own network is "
            "changed, and no root is needed. Serves until Ctrl-C. Exit codes: 1 the VPN failed, "
            "125 microvm itself did, 130 Ctrl-C."
        ),
    )
    run.add_argument("config", metavar="CONFIG", help="an OpenVPN client's configuration (.ovpn)")
    add_machine_options(run)
    run.set_defaults(mem_size_mib=64)
    run.add_argument(
        "--socks",
        default=DEFAULT_LISTEN,
        metavar="ADDR:PORT|unix:PATH",
        help=f"where programs of this host find the proxy (default: {DEFAULT_LISTEN}; port 0: one "
        "is chosen)",
    )
    run.add_argument(
        "--auth-file",
        metavar="FILE",
        help="the user name in its first line, the password in the second; in a third a private "
        "key's passphrase, which may stand alone there. What lacks is asked for, on a terminal",
    )
    run.add_argument(
        "--allow-files",
        action="store_true",
        help="let CONFIG name files that are hidden or not beneath its folder. What is in them is "
        "sent to the guest or to the server: trust whoever wrote CONFIG",
    )
    run.add_argument(
        "--dns",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a name server to be asked, through the VPN, in place of those that it names",
    )
    run.add_argument(
        "--json", action="store_true", help="print what happens, one JSON object a line"
    )
    run.set_defaults(func=_main)


def _main(args: argparse.Namespace) -> int:
    from microvm.console import visible_lines
    from microvm.errors import MicrovmError, PluginMissing

    try:
        from microvm_guest.openvpn import VpnFailed
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "microvm_guest":
            raise
        raise PluginMissing(
            "microvm-guest, which brings VPNs, is not installed.",
            remedy="pip install microvm-guest",
        ) from error
    with EventStream(sys.stdout) if args.json else nullcontext() as events:
        try:
            return _run(args, events)
        except MicrovmError as error:
            if events is None:
                print(f"microvm: {visible_lines(str(error))}", file=sys.stderr)
            else:
                events.tell("failed", error=error.code, message=str(error), remedy=error.remedy)
            return EXIT_VPN_FAILED if isinstance(error, VpnFailed) else EXIT_OWN_FAILURE


def _config(args: argparse.Namespace) -> MachineConfig:
    import attrs

    args.net = [net for net in args.net if net != "none"]
    config = machine_config(args)
    return attrs.evolve(config, provisioners=(*config.provisioners, "openvpn"))


def _run(args: argparse.Namespace, events: EventStream | None) -> int:
    import trio

    from microvm._machine import Machine
    from microvm.cli import _vpn_credentials
    from microvm.cli._prompt import prompt_here
    from microvm.cli._signals import ended_by_signals
    from microvm.cli._status_line import status_line
    from microvm.forwards import UnixAddress
    from microvm_guest.openvpn import OpenVpnTunnel, read_config

    listen = parse_listen(args.socks, "--socks")
    config = read_config(args.config, files_outside=args.allow_files)
    given = _vpn_credentials.given(config, args.auth_file)
    machine = Machine(_config(args))
    lines = LineWriter(sys.stderr)
    if events is None:
        names = ", ".join(line.partition(":")[0] for line in config.left_out)
        if names:
            print(f"microvm: passed over what means nothing here: {names}", file=sys.stderr)

    async def session(status: StatusLine) -> None:
        prompt = prompt_here(status) if events is None else None
        async with ended_by_signals(signal.SIGTERM, signal.SIGHUP):
            known = await _vpn_credentials.completed(given, config, prompt)
            outcome = await serve(known, status)
        status.clear()
        if events is None:
            text = f"microvm: the machine has ended. {outcome.detail}"
            lines.put(text, kind="ended", weight=Weight.ONCE)
        else:
            events.tell("ended", reason=outcome.reason.value, detail=outcome.detail)

    async def serve(known: Credentials, status: StatusLine) -> MachineOutcome:
        async with machine:
            status.show(f"microvm: booting on {machine.backend.name}")
            if events is not None:
                events.tell_starting(machine)
            await machine.wait_ready()
            vpn = OpenVpnTunnel(machine, config, known, dns=args.dns)
            where = (
                {"path": listen.path}
                if isinstance(listen, UnixAddress)
                else {"host": listen.host, "port": listen.port}
            )
            async with (
                # Within the machine, so that it lives on while the VPN says goodbye to its server.
                ended_by_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
                await machine.socks5(**where) as proxy,
                vpn,
                trio.open_nursery() as nursery,
            ):
                status.clear()
                say_ready(machine, proxy, events)
                if events is None:
                    nursery.start_soon(_watch, vpn, proxy, status)
                    nursery.start_soon(_say_states, vpn, status, lines)
                else:
                    nursery.start_soon(_tell_states, vpn, events)
                    nursery.start_soon(events.raise_when_lost)
                nursery.start_soon(_raise_when_failed, vpn)
                outcome = await machine.wait()
                nursery.cancel_scope.cancel()
        return outcome

    from microvm._groups import only_error

    try:
        with (
            lines,
            logged_by(lines),
            status_line(sys.stderr if events is None else None) as status,
        ):
            trio.run(session, status)
    except BaseExceptionGroup as group:
        raise only_error(group) from None
    return EXIT_OWN_FAILURE


async def _raise_when_failed(vpn: OpenVpnTunnel) -> None:
    await vpn.wait_ended()
    await vpn.wait_connected()  # raises what it has failed with


async def _tell_states(vpn: OpenVpnTunnel, events: EventStream) -> None:
    """Every change of the VPN's state, for a program."""
    from microvm_guest.openvpn import StateChanged

    async for event in vpn.events():
        if isinstance(event, StateChanged):
            events.tell("vpn", **_facts(event.status))


async def _say_states(vpn: OpenVpnTunnel, status: StatusLine, lines: LineWriter) -> None:
    """Every change of the VPN's state, as a line where there is no status line."""
    from microvm_guest.openvpn import StateChanged

    told = ""
    async for event in vpn.events():
        if not isinstance(event, StateChanged) or status.live:
            continue
        if (text := _sentence(event.status)) != told:
            told = text
            lines.put(f"microvm: {text}", kind="vpn", weight=Weight.STATE)


def _facts(status: VpnStatus) -> dict[str, Any]:
    return {
        "state": status.state.value,
        "reason": status.reason.value if status.reason is not None else None,
        "detail": status.detail,
        "since": status.since,
        "server": status.server,
        "local_ip": status.local_ip,
        "local_ip6": status.local_ip6,
        "dns": list(status.dns),
    }


def _sentence(status: VpnStatus) -> str:
    """How the VPN is, for a line of a terminal; whatever the guest and the server have said."""
    from microvm.console import visible_lines

    text = f"VPN {status.state.value}"
    if status.server is not None:
        text += f" {'to' if status.local_ip else 'at'} {status.server}"
    if status.local_ip is not None:
        text += f", {status.local_ip}"
        if not status.dns:
            text += ", no name server (--dns gives one)"
    return visible_lines(f"{text}. {status.detail}" if status.detail else text)


async def _watch(vpn: OpenVpnTunnel, proxy: Forward, status: StatusLine) -> None:
    """The live line."""
    import trio

    while True:
        now = vpn.status
        moved = f"{_bytes(now.received_bytes)} in, {_bytes(now.sent_bytes)} out"
        text = (
            f"microvm: {_sentence(now).rstrip('.')}. SOCKS5 at {proxy.address}, connections: "
            f"{proxy.connections}, {moved}. Ctrl-C ends it"
        )
        # A line that wraps could not be written over.
        status.show(text[: shutil.get_terminal_size().columns - 1])
        await trio.sleep(LOOK_EVERY_S)


def _bytes(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]
    raise AssertionError
