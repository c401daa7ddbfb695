"""Kernel configurations as values: read, merge, compare. Pure.

The format is that of ``.config`` (Linux, Documentation/kbuild/kconfig.rst and
scripts/kconfig/confdata.c): ``CONFIG_X=value``, ``# CONFIG_X is not set``, comments. A symbol
that does not appear is not set, and "not set" and ``n`` are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

Config = Mapping[str, str]
"""Symbol without ``CONFIG_`` -> its text after ``=``, quotes included; ``n`` when not set."""

_SET = re.compile(r"CONFIG_(\w+)=(.+)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")


class KconfigSyntaxError(ValueError):
    """A line is neither a setting nor a comment."""


@attrs.frozen
class Unmet:
    """A symbol that did not come out as wanted."""

    symbol: str
    wanted: str
    got: str

    def __str__(self) -> str:
        return f"{self.symbol} (wanted {self.wanted}, got {self.got})"


def parse(text: str) -> dict[str, str]:
    """Read a configuration; the last of several settings of a symbol counts.

    Raises:
        KconfigSyntaxError: with the line and its number.
    """
    config: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if found := _SET.fullmatch(line):
            config[found[1]] = found[2]
        elif found := _UNSET.fullmatch(line):
            config[found[1]] = "n"
        elif line and not line.startswith("#"):
            raise KconfigSyntaxError(f"line {number} is not a setting: {line!r}")
    return config


def merge(configs: Iterable[Config]) -> dict[str, str]:
    """Lay configurations over one another, later ones on top.

    What a later one sets comes later in the result too: of the members of a kconfig `choice`
    the last one set to ``y`` wins.
    """
    merged: dict[str, str] = {}
    for config in configs:
        for symbol, value in config.items():
            merged.pop(symbol, None)
            merged[symbol] = value
    return merged


def render(config: Config) -> str:
    """Write a configuration as ``.config`` text, in the order of its symbols."""
    return "".join(
        f"# CONFIG_{symbol} is not set\n" if value == "n" else f"CONFIG_{symbol}={value}\n"
        for symbol, value in config.items()
    )


def unmet(wanted: Config, got: Config) -> list[Unmet]:
    """The symbols of `wanted` that `got` has otherwise."""
    return [
        Unmet(symbol, value, got.get(symbol, "n"))
        for symbol, value in wanted.items()
        if got.get(symbol, "n") != value
    ]
