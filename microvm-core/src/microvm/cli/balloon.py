"""``microvm balloon``: take memory back from a named machine's guest, or let it have it again."""

from __future__ import annotations

import argparse
import json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``balloon``."""
    parser = subparsers.add_parser(
        "balloon",
        help="take memory back from a named machine's guest",
        description="Ask a guest to give so much of its memory back, or with 0 to take all of it "
        "again; without MIB, only show how much it was asked for. It gives what it can spare, in "
        "its own time. The machine has to have a balloon: microvm run --device balloon",
    )
    parser.add_argument("name", metavar="NAME", help="see: microvm ls")
    parser.add_argument("mib", metavar="MIB", nargs="?", type=int, help="how much, in MiB")
    parser.add_argument(
        "--device", default="balloon0", metavar="DEVICE", help="which balloon (balloon0)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Ask for it, and say what the guest has given by now."""
    from microvm.console import visible_text
    from microvm.control.client import ControlClient

    arguments = {} if args.mib is None else {"mib": args.mib}
    with ControlClient(args.name) as client:
        facts = client.ask("device-command", device=args.device, name="target", arguments=arguments)
    if args.json:
        print(json.dumps(facts))
    else:
        told = f"asked for {facts.get('target_mib')} MiB, has given {facts.get('actual_mib')} MiB"
        print(visible_text(told.encode()))
    return 0
