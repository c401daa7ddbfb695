"""What stands behind the command line's options of a machine."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm import ConfigError, ConsoleConfig, DeviceConfig, DriveConfig, NetConfig, RateLimit
from microvm.cli._option_words import (
    net_help,
    parse_console,
    parse_device,
    parse_disk,
    parse_nets,
    split_words,
)
from microvm.plugins import NetBackendFactory


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_words_with_doubled_commas_come_out_as_they_were(words: list[str]) -> None:
    # An empty word between others would double the commas around it.
    words = [word or "x" for word in words]
    words = [word if not word.startswith(",") else f"x{word}" for word in words]
    assert split_words(",".join(word.replace(",", ",,") for word in words)) == words


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("a.img", {"path": "a.img"}),
        ("/x/a,,b.img,ro", {"path": "/x/a,b.img", "read_only": True}),
        ("a,root,ro", {"path": "a", "root": True, "read_only": True}),
        ("a,writethrough,queues=2", {"path": "a", "writeback": False, "queues": 2}),
        ("a,serial=s=1", {"path": "a", "serial": "s=1"}),
        ("a,rate=10M", {"path": "a", "rate_limit": RateLimit(bytes_per_s=10 << 20)}),
        ("a,iops=500", {"path": "a", "rate_limit": RateLimit(ops_per_s=500)}),
        ("a,iops=5,ro,rate=9", {
            "path": "a", "read_only": True, "rate_limit": RateLimit(bytes_per_s=9, ops_per_s=5),
        }),
    ],
)  # fmt: skip
def test_disks(text: str, fields: dict[str, Any]) -> None:
    assert parse_disk(text) == DriveConfig(**fields)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the path is missing"),
        (",ro", "the path is missing"),
        ("a,b.img", r"'b\.img' means nothing.*\n.*written twice"),
        ("a,ro=1", "'ro=1' means nothing"),
        ("a,queues=many", "queues must be a whole number"),
        ("a,queues=99", "queues: must be a whole number from"),
        ("a,queues=\N{ARABIC-INDIC DIGIT TWO}", "queues must be a whole number"),
        (f"a,serial={'x' * 30}", "serial"),
        ("a,rate=fast", "rate must be a number of bytes like 65536, 64K"),
        ("a,rate=0", "bytes_per_s: must be a whole number from 1"),
        ("a,iops=1K", "iops must be a whole number"),
        ("a,rate", "'rate' means nothing"),
    ],
)
def test_disks_that_are_none_say_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_disk(text)


def tap(text: str) -> dict[str, Any]:
    if not text:
        raise ConfigError("The interface is missing.")
    return {"interface": text}


BACKENDS = {
    "tap": NetBackendFactory(
        name="tap", summary="s", create=lambda o: None, syntax="tap:NAME", parse_cli=tap
    ),
    "null": NetBackendFactory(name="null", summary="a cable", create=lambda o: None),
}


def nets(*texts: str, capture: str | None = None) -> tuple[NetConfig, ...]:
    return parse_nets(list(texts), capture, BACKENDS.__getitem__)


def test_nets_are_read_by_their_backends() -> None:
    assert nets("null", "tap:vm:0,x", "null") == (
        NetConfig(backend="null"),
        NetConfig(backend="tap", options={"interface": "vm:0,x"}),
        NetConfig(backend="null"),
    )
    assert nets() == nets("none") == ()
    assert nets("tap:vm:0,,x,,mtu=9")[0].options == {"interface": "vm:0,x,mtu=9"}
    assert nets("null", capture="f.pcap")[0].capture == Path("f.pcap")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("null,mac=02:00:00:00:00:01", {"mac": "02:00:00:00:00:01"}),
        ("null,mtu=1400,queues=2", {"mtu": 1400, "queues": 2}),
        ("null,rate=1M", {
            "rx_rate_limit": RateLimit(bytes_per_s=1 << 20),
            "tx_rate_limit": RateLimit(bytes_per_s=1 << 20),
        }),
        ("tap:a,mtu=1400,b,queues=2,c", {
            "backend": "tap", "options": {"interface": "a,b,c"}, "mtu": 1400, "queues": 2,
        }),
    ],
)  # fmt: skip
def test_every_net_may_have_what_every_card_has(text: str, fields: dict[str, Any]) -> None:
    assert nets(text) == (NetConfig(**{"backend": "null", **fields}),)


@pytest.mark.parametrize(
    ("texts", "capture", "said"),
    [
        (("tap",), None, r"--net tap: The interface is missing\.\nIt is written --net tap:NAME"),
        (("null:x",), None, "--net null:x: It takes nothing behind its name"),
        ((":x",), None, "the backend's name is missing"),
        ((",mtu=9",), None, "the backend's name is missing"),
        (("tap,host",), None, r"--net tap,host: 'host' means.*\n.*--net tap:NAME\[,mac=MAC\]"),
        (("null,mac",), None, "--net null,mac: 'mac' means nothing"),
        (("null,mac=1",), None, "mac: must be six bytes"),
        (("null,mtu=big",), None, "mtu must be a whole number"),
        (("null,rate=-1",), None, "rate must be a number of bytes"),
        (("none", "null"), None, "with others"),
        ((), "f", r"there are 0\.\nGive one --net, such as"),
        (("null", "null"), "f", "there are 2"),
    ],
)
def test_nets_that_are_none_say_what_to_write(texts, capture, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        nets(*texts, capture=capture)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("rng", {}),
        ("dice,sides=6,fair=true,seed=null,name=a=b", {
            "sides": 6, "fair": True, "seed": None, "name": "a=b",
        }),
        ("dice,ratio=0.5,text=\"6\",path=/a,,b,empty=", {
            "ratio": 0.5, "text": "6", "path": "/a,b", "empty": "",
        }),
        ("dice,a=NaN,b=[1],c={},d=1_000", {"a": "NaN", "b": "[1]", "c": "{}", "d": "1_000"}),
    ],
)  # fmt: skip
def test_devices_have_simple_values_or_texts(text: str, options: dict[str, Any]) -> None:
    assert parse_device(text) == DeviceConfig(name=text.split(",")[0], options=options)


@pytest.mark.parametrize("text", ["", ",a=1", "dice,a", "dice,=1", "dice,"])
def test_devices_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        parse_device(text)


def test_consoles() -> None:
    assert parse_console("ring") == ConsoleConfig()
    assert parse_console("pty") == ConsoleConfig(output="pty")
    assert parse_console("file:a:b,c") == ConsoleConfig(output="file", path="a:b,c")


@pytest.mark.parametrize("text", ["", "file", "file:", "pty:x", "tty", "stdio:1"])
def test_consoles_that_are_none_say_which_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"ring\|file:PATH\|stdio\|pty"):
        parse_console(text)


def test_help_has_every_backends_own_syntax() -> None:
    told = net_help({factory.syntax: factory.summary for factory in BACKENDS.values()})
    assert told == "tap:NAME (s); null (a cable); none (the default)"
