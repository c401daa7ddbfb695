"""Reading what ``qemu-system-x86_64`` says about itself. Pure.

The formats are not documented as an interface, but have been the same since QEMU 2: one item a
line, its name first (``-machine help``, ``-object help``, ``-accel help``) or quoted behind
``name`` (``-device help``).
"""

from __future__ import annotations

import re

import attrs

from microvm_qemu._devices import FRONT_ENDS
from microvm_qemu._facts import MACHINE, MEMORY_OBJECT, QemuFacts, Version

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


@attrs.frozen(kw_only=True)
class Answers:
    """What a QEMU printed, as text, for each question."""

    version: str
    machines: str
    objects: str
    devices: str
    accelerators: str
    sandbox: bool
    """Whether it took ``-sandbox`` as an option."""


def facts_from(answers: Answers) -> QemuFacts | None:
    """The facts, or None if this is not the output of a QEMU."""
    version = parse_version(answers.version)
    if version is None:
        return None
    return QemuFacts(
        version=version,
        has_machine=MACHINE in parse_names(answers.machines),
        has_memfd=MEMORY_OBJECT in parse_names(answers.objects),
        sandbox=answers.sandbox,
        devices=parse_devices(answers.devices) & frozenset(FRONT_ENDS.values()),
        accelerators=parse_names(answers.accelerators) & {"tcg", "kvm"},
    )
