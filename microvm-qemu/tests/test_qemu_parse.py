"""Reading QEMU's help texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_qemu._parse import Answers, facts_from, parse_devices, parse_names, parse_version

VERSION = """\
QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)
Copyright (c) 2003-2022 Fabrice Bellard and the QEMU Project developers
"""
MACHINES = """\
Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
"""
OBJECTS = """\
List of user creatable objects:
  can-bus
  memory-backend-file
  memory-backend-memfd
"""
DEVICES = """\
Storage devices:
name "vhost-user-blk", bus virtio-bus
name "vhost-user-blk-pci", bus PCI

Misc devices:
name "vhost-user-vsock-device", bus virtio-bus
name "isa-debug-exit", bus ISA, desc "a description"
"""
ACCELERATORS = """\
Accelerators supported in QEMU binary:
tcg
kvm
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (VERSION, (7, 2, 22)),
        ("QEMU emulator version 10.0.0\n", (10, 0, 0)),
        ("QEMU emulator version 9.1.50 (v9.1.0-1234-gdeadbee)\n", (9, 1, 50)),
        ("QEMU emulator version 8.2", (8, 2, 0)),
        ("warning: something\n" + VERSION, (7, 2, 22)),
        ("", None),
        ("GNU bash, version 5.2.15", None),
        ("QEMU emulator version seven", None),
        ("QEMU emulator version " + "9" * 100_000 + ".1", None),
    ],
)
def test_the_version_is_where_qemu_prints_it(
    text: str, version: tuple[int, int, int] | None
) -> None:
    assert parse_version(text) == version


def test_machines_objects_and_accelerators_are_the_first_words() -> None:
    assert "microvm" in parse_names(MACHINES)
    assert "memory-backend-memfd" in parse_names(OBJECTS)
    assert {"tcg", "kvm"} <= parse_names(ACCELERATORS)


def test_a_name_that_only_begins_like_another_is_another() -> None:
    assert "microvm" not in parse_names("microvm-4.0    old\nxmicrovm   other\n")


def test_devices_are_named_in_quotes() -> None:
    assert parse_devices(DEVICES) == {
        "vhost-user-blk",
        "vhost-user-blk-pci",
        "vhost-user-vsock-device",
        "isa-debug-exit",
    }


def answers(**changes: object) -> Answers:
    given_answers: dict[str, object] = {
        "version": VERSION,
        "machines": MACHINES,
        "objects": OBJECTS,
        "devices": DEVICES,
        "accelerators": ACCELERATORS,
        "sandbox": True,
    }
    return Answers(**(given_answers | changes))  # type: ignore[arg-type]


def test_facts_hold_only_the_devices_we_have_a_use_for() -> None:
    facts = facts_from(answers())
    assert facts is not None
    assert facts.devices == {"vhost-user-blk", "vhost-user-vsock-device"}
    assert facts.accelerators == {"tcg", "kvm"}
    assert facts.has_machine
    assert facts.has_memfd


def test_what_has_no_version_is_no_qemu() -> None:
    assert facts_from(answers(version="hello\n")) is None


@given(st.text(max_size=400))
def test_any_text_is_read_without_an_error(text: str) -> None:
    facts_from(answers(version=text, machines=text, objects=text, devices=text, accelerators=text))
