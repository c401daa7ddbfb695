"""``microvm cp``: files and directories between this host and a named machine."""

from __future__ import annotations

import argparse
import json
import os
from typing import NamedTuple


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``cp``."""
    parser = subparsers.add_parser(
        "cp",
        help="copy files to and from a named machine",
        description=(
            "Copy a file or a whole directory into a machine, or out of it. A destination that is "
            "a directory here, or ends in a slash, gets the copy by its own name; any other is the "
            "copy's name. What is there is replaced, but never a directory with something in it."
        ),
    )
    parser.add_argument("source", metavar="SRC", help="a path here, or NAME:/path in a machine")
    parser.add_argument("destination", metavar="DST", help="the other one of the two")
    parser.add_argument("--json", action="store_true", help="print what was copied")
    parser.set_defaults(func=run)


class Place(NamedTuple):
    """One side of a copy."""

    machine: str | None
    """None: this host."""
    path: str


def parse_place(word: str) -> Place:
    """``NAME:/path`` is in a machine; whatever has a slash before its colon, or none, is here."""
    name, colon, path = word.partition(":")
    if colon and name and "/" not in name:
        return Place(name, path)
    return Place(None, word)


def full_destination(destination: Place, source: Place) -> Place:
    """The copy's name, where the destination is a directory to put it in."""
    inside = destination.path.endswith("/") or (
        destination.machine is None and os.path.isdir(destination.path)
    )
    if not inside:
        return destination
    name = os.path.basename(source.path.rstrip("/"))
    return destination._replace(path=os.path.join(destination.path, name))


def run(args: argparse.Namespace) -> int:
    """Copy, and say nothing unless asked."""
    from microvm.control.client import ControlClient
    from microvm.errors import ConfigError

    source = parse_place(args.source)
    destination = full_destination(parse_place(args.destination), source)
    machine = source.machine or destination.machine
    if machine is None or (source.machine and destination.machine):
        raise ConfigError(
            "One of the two is in a machine, and the other one here.",
            remedy="For example: microvm cp notes.txt NAME:/root/notes.txt",
        )
    here, there = (source, destination) if source.machine is None else (destination, source)
    if not there.path.startswith("/"):
        raise ConfigError(f"A path in a machine begins with a slash, not {there.path!r}.")
    with ControlClient(machine) as client:
        report = client.ask(
            "copy-in" if here is source else "copy-out",
            within_s=None,
            local=os.path.abspath(here.path),
            guest=there.path,
        )
    if args.json:
        print(json.dumps(report))
    return 0
