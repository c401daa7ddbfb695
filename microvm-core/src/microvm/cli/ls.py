"""``microvm ls``: the named machines of this user that run."""

from __future__ import annotations

import argparse
import json
from typing import Any

COLUMNS = ("name", "state", "backend", "pid", "mem_size_mib", "vcpu_count")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ls``."""
    parser = subparsers.add_parser(
        "ls",
        help="list running machines that have a name",
        description="List this user's running machines that have a name (microvm run --name).",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the list; an empty one is no failure."""
    from microvm.control.client import running_machines

    machines = list(running_machines())
    if args.json:
        print(json.dumps({"machines": machines}, indent=2))
    elif machines:
        print("\n".join(table(machines)))
    return 0


def table(machines: list[dict[str, Any]]) -> list[str]:
    """The machines as lines with aligned columns."""
    from microvm.console import visible_text

    rows = [
        COLUMNS,
        *(
            tuple(visible_text(str(one.get(key, "")).encode()) for key in COLUMNS)
            for one in machines
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
