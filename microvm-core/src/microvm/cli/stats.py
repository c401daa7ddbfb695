"""``microvm stats``: what a named machine has done so far."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

EXIT_LINES = 10
"""Of the places that the guest left for most often."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stats``."""
    parser = subparsers.add_parser(
        "stats",
        help="show what a named machine has done",
        description="Show a machine's counters: devices, console, exits, and the boot's phases.",
    )
    parser.add_argument("name", metavar="NAME", help="see: microvm ls")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=1.0,
        metavar="SECONDS",
        help="again and again, each second if no other time is given; JSON then has a line each",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print them, once or until interrupted or the machine has gone."""
    from microvm.errors import ConfigError, GuestGone

    if args.watch is not None and not 0.05 <= args.watch <= 86400:
        raise ConfigError(f"--watch takes seconds from 0.05 to 86400, not {args.watch:g}.")
    stats = _look(args.name)
    while True:
        if args.json:
            print(json.dumps(stats, indent=None if args.watch else 2), flush=True)
        else:
            print("\n".join(lines(stats)), flush=True)
        if args.watch is None:
            return 0
        time.sleep(args.watch)
        try:
            stats = _look(args.name)
        except ConfigError as error:
            raise GuestGone(f"The machine {args.name!r} has gone.") from error
        if not args.json:
            print(flush=True)


def _look(name: str) -> dict[str, Any]:
    """By a connection of its own: one that is silent for a minute is closed by the machine."""
    from microvm.control.client import ControlClient

    with ControlClient(name) as client:
        return client.ask("stats")


def lines(stats: Mapping[str, Any]) -> list[str]:
    """For a person: a line for each device and group, exits only the most frequent."""
    from microvm.console import visible_text

    groups = [*_mapping(stats.get("devices")).items(), ("console", stats.get("console"))]
    groups.append(("boot ms", stats.get("timing")))
    told = [
        f"{name:<10} " + "  ".join(f"{key}={value}" for key, value in _mapping(counters).items())
        for name, counters in groups
    ]
    exits = _mapping(stats.get("exits"))
    if exits:
        told.append(f"{'exits':<10} {sum(exits.values())}")
        told += [f"{count:>20}  {place}" for place, count in list(exits.items())[:EXIT_LINES]]
    return [visible_text(line.encode()) for line in told]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
