"""``microvm plugins``: what is installed, and how each plugin fares."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microvm.plugins import PluginStatus

COLUMNS = ("group", "name", "distribution", "version", "state", "about")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "plugins",
        help="list backends, devices, net backends and provisioners",
        description="List every plugin installed, each loaded and looked over.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 if a plugin is broken or in conflict (as MICROVM_STRICT_PLUGINS=1 does)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the list; 0, or 1 if asked to be strict and a plugin is at fault."""
    from microvm._discovery import Switches
    from microvm.plugins import installed_plugins

    strict = args.strict or Switches.from_environment(os.environ).strict
    return show(installed_plugins().examine(), as_objects=args.json, strict=strict)


def show(statuses: Sequence[PluginStatus], *, as_objects: bool, strict: bool) -> int:
    """Print these plugins, and return the exit code."""
    if as_objects:
        print(json.dumps({"plugins": [as_json(status) for status in statuses]}, indent=2))
    else:
        print("\n".join(table(statuses)))
    at_fault = any(status.state in ("broken", "conflict") for status in statuses)
    return 1 if strict and at_fault else 0


def as_json(status: PluginStatus) -> dict[str, Any]:
    """A plugin as an object whose keys stay the same from release to release."""
    record = status.record
    good = status.state == "ok"
    return {
        "group": record.group.value,
        "name": record.name,
        "distribution": record.dist,
        "version": record.version,
        "module": record.value,
        "state": status.state.value,
        "summary": status.detail if good else None,
        "reason": None if good else status.detail,
        "hooks": list(status.hooks),
    }


def table(statuses: Sequence[PluginStatus]) -> list[str]:
    """The plugins as lines with aligned columns; the last one is as long as it is."""
    if not statuses:
        return ["No plugins are installed. Install some: pip install 'microvm-core[host]'"]
    rows = [
        COLUMNS,
        *(
            (
                status.record.group.value,
                status.record.name,
                status.record.dist,
                status.record.version,
                status.state.value,
                status.detail,
            )
            for status in statuses
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
