"""`microvm plugins`: the list that a person or a program reads."""

import argparse
import json

import pytest

from microvm._discovery import Discovery, PluginGroup, PluginRecord, Switches
from microvm._plugin_manager import PluginManager
from microvm.cli.plugins import add_parser, show
from microvm.plugins import DeviceFactory, hookimpl


class Dice:
    @hookimpl
    def microvm_register_device(self):
        return DeviceFactory(
            name="dice", summary="Repeatable entropy", virtio_id=4, create=lambda options: None
        )

    @hookimpl
    def microvm_check_config(self):
        return []


def record(group, name, dist):
    return PluginRecord(group=group, name=name, value=f"{dist}.plugin", dist=dist, version="1.2")


def resolve(wanted):
    if wanted.name == "dice":
        return Dice()
    raise RuntimeError("no luck")


RECORDS = (
    record(PluginGroup.BACKEND, "twice", "one"),
    record(PluginGroup.BACKEND, "twice", "two"),
    record(PluginGroup.DEVICE, "dice", "microvm-dice"),
    record(PluginGroup.DEVICE, "off", "microvm-off"),
    record(PluginGroup.PROVISIONER, "broken", "microvm-broken"),
)


def manager(*records):
    return PluginManager(
        Discovery(records=records), switches=Switches(disabled=frozenset({"off"})), resolve=resolve
    )


def test_the_table_has_a_line_for_each_plugin_with_its_state_and_reason(capsys):
    assert show(manager(*RECORDS).examine(), as_objects=False, strict=False) == 0
    out = capsys.readouterr().out
    heading, *lines = out.splitlines()
    assert heading.split() == ["group", "name", "distribution", "version", "state", "about"]
    states = [line.split()[:5] for line in lines]
    assert states == [
        ["backend", "twice", "one", "1.2", "conflict"],
        ["backend", "twice", "two", "1.2", "conflict"],
        ["device", "dice", "microvm-dice", "1.2", "ok"],
        ["device", "off", "microvm-off", "1.2", "disabled"],
        ["provisioner", "broken", "microvm-broken", "1.2", "broken"],
    ]
    assert "Repeatable entropy" in lines[2]
    assert "importing microvm-broken.plugin raised RuntimeError: no luck." in lines[4]
    assert len({line.index("1.2") for line in lines}) == 1


def test_json_has_the_same_as_objects(capsys):
    assert show(manager(*RECORDS).examine(), as_objects=True, strict=False) == 0
    found = json.loads(capsys.readouterr().out)["plugins"]
    assert found[2] == {
        "group": "device",
        "name": "dice",
        "distribution": "microvm-dice",
        "version": "1.2",
        "module": "microvm-dice.plugin",
        "state": "ok",
        "summary": "Repeatable entropy",
        "reason": None,
        "hooks": ["microvm_check_config"],
    }
    assert found[4]["summary"] is None
    assert "no luck" in found[4]["reason"]


@pytest.mark.parametrize(
    ("records", "strict", "code"),
    [(RECORDS, True, 1), (RECORDS, False, 0), (RECORDS[2:4], True, 0), (RECORDS[:2], True, 1)],
    ids=["strict", "lenient", "no-fault", "conflict"],
)
def test_strict_is_an_exit_code_of_one_if_a_plugin_is_at_fault(records, strict, code):
    assert show(manager(*records).examine(), as_objects=False, strict=strict) == code


def test_without_plugins_it_says_what_to_install(capsys):
    assert show((), as_objects=False, strict=True) == 0
    assert "pip install 'microvm-core[host]'" in capsys.readouterr().out


def test_the_subcommand_lists_what_is_installed(capsys):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["plugins", "--json"])
    assert args.func(args) == 0
    found = {entry["name"] for entry in json.loads(capsys.readouterr().out)["plugins"]}
    assert {"qemu", "vsock", "agent"} <= found
