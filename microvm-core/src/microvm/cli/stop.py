"""``microvm stop``: end a named machine."""

from __future__ import annotations

import argparse
import json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stop``."""
    parser = subparsers.add_parser(
        "stop",
        help="stop a named machine",
        description="Ask the guest to end; after three seconds it is ended whatever it does.",
    )
    parser.add_argument("name", metavar="NAME", help="see: microvm ls")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Stop it, and say how it ended."""
    from microvm.console import visible_text
    from microvm.control.client import STOP_WITHIN_S, ControlClient

    with ControlClient(args.name) as client:
        outcome = client.ask("stop", STOP_WITHIN_S)
    if args.json:
        print(json.dumps(outcome))
    else:
        print(visible_text(f"{outcome.get('reason')}: {outcome.get('detail')}".encode()))
    return 0
