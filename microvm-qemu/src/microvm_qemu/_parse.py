"""Reading what ``qemu-system-x86_64`` says about itself. Pure.

The formats are not documented as an interface, but have been the same since QEMU 2: one item a
line, its name first (``-machine help``, ``-object help``, ``-accel help``) or quoted behind
``name`` (``-device help``).
"""

from __future__ import annotations

import re

Version = tuple[int, int, int]

_VERSION = re.compile(r"QEMU emulator version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?")
_NAME = re.compile(r"^\s*([A-Za-z0-9][\w.-]*)(?:\s|$)", re.MULTILINE | re.ASCII)
_DEVICE = re.compile(r'^name "([^"\n]+)"', re.MULTILINE)


def parse_version(text: str) -> Version | None:
    """The version in the output of ``-version``, or None if there is none in it."""
    found = _VERSION.search(text)
    if found is None:
        return None
    major, minor, micro = found.groups(default="0")
    return int(major), int(minor), int(micro)


def parse_names(text: str) -> frozenset[str]:
    """The first word of each line: machines, objects or accelerators, and the heading's."""
    return frozenset(_NAME.findall(text))


def parse_devices(text: str) -> frozenset[str]:
    """The names in the output of ``-device help``."""
    return frozenset(_DEVICE.findall(text))
