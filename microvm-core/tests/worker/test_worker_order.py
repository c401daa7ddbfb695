"""An order arrives as it was given, options of every kind in it."""

import enum
import json
import logging
from pathlib import Path

import pytest

from microvm import (
    BootSource,
    DeviceConfig,
    DriveConfig,
    Isolation,
    MachineConfig,
    NetConfig,
    RateLimit,
    VsockConfig,
)
from microvm.abc import MachinePlan
from microvm.timeline import BootTimeline
from microvm.worker.order import Order, option_problems


class Colour(enum.StrEnum):
    RED = "red"


OPTIONS = {
    "nothing": None,
    "yes": True,
    "number": -(1 << 70),
    "fraction": 0.1,
    "text": "ä\udcff",
    "bytes": b"\x00\xff",
    "path": Path("/run/\udcff"),
    "list": [1, [Path("a")], (2, "b")],
    "tuple": (1, {"path": Path("c")}),
    "mapping": {"path": {"map": [], "list": {}}, "bytes": b""},
    "colour": Colour.RED,
}

LIMIT = RateLimit(bytes_per_s=1_000_000, burst_bytes=1 << 20)


def order(**fields: object) -> Order:
    plan = MachinePlan(
        config=MachineConfig(**{"isolation": "process", **fields}),
        kernel=Path("/k"),
        initrd=None,
        cmdline="console=ttyS0",
        devices=(),
        timeline=BootTimeline(),
    )
    return Order.of(plan, backend="rig", log_level=logging.INFO)


def arrived(sent: Order) -> Order:
    return Order.from_json(json.loads(json.dumps(sent.to_json())))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mem_size_mib": 64, "vcpu_count": 4, "cmdline": "quiet", "ready_within_s": 1.5},
        {"boot": BootSource(kernel="/k", initrd="/i", cmdline="quiet")},
        {"vsock": VsockConfig(guest_cid=7, uds_path="/run/v")},
        {"vsock": None, "provisioners": ()},
        {"backend_options": OPTIONS},
        {"devices": [DeviceConfig(name="a", options=OPTIONS), DeviceConfig(name="b")]},
        {"drives": [DriveConfig(path="/a", read_only=True), DriveConfig(path="/b", root=True)]},
        {"drives": [DriveConfig(path="/a", serial="x", rate_limit=LIMIT)]},
        {"nets": [NetConfig(options=OPTIONS, capture="/p", rx_rate_limit=LIMIT)]},
    ],
)
def test_a_machine_arrives_as_it_was_described(fields):
    sent = order(**fields)
    got = arrived(sent)
    expected = MachineConfig(**fields, backend="rig")
    assert got.config == expected
    assert got.config.isolation is Isolation.INLINE  # one worker is enough
    assert (got.backend, got.kernel, got.initrd) == ("rig", Path("/k"), None)
    assert (got.cmdline, got.log_level) == ("console=ttyS0", logging.INFO)


def test_options_keep_their_types():
    options = arrived(order(backend_options=OPTIONS)).config.backend_options
    assert options == OPTIONS
    assert [type(v) for v in options["list"]] == [int, list, tuple]
    assert isinstance(options["mapping"]["path"]["list"], dict)


@pytest.mark.parametrize(
    "value", [object(), {1: "a"}, {"deep": [{"deeper": {1, 2}}]}, print, 1j, [bytearray()]]
)
def test_what_can_not_be_told_is_a_problem_with_its_place(value):
    config = MachineConfig(
        backend_options={"fine": 1, "bad": value},
        nets=[NetConfig(options={"y": value})],
        devices=[DeviceConfig(name="a"), DeviceConfig(name="b", options={"x": value})],
    )
    assert [p.where for p in option_problems(config)] == [
        "backend_options.bad",
        "nets[0].options.y",
        "devices[1].options.x",
    ]
