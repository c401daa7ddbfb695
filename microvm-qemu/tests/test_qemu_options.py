"""The backend's options."""

from pathlib import Path
from typing import Any

import pytest

from microvm.errors import ConfigError
from microvm_qemu._options import QemuOptions, parse_options


def test_no_options_are_the_defaults() -> None:
    assert parse_options({}) == QemuOptions(
        accel="tcg", program="qemu-system-x86_64", extra_args=()
    )


def test_every_option_can_be_given() -> None:
    options = parse_options(
        {"accel": "kvm", "program": Path("/opt/qemu"), "extra_args": ["-d", "int"]}
    )
    assert options == QemuOptions(accel="kvm", program="/opt/qemu", extra_args=("-d", "int"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"acel": "kvm"}, "is no option"),
        ({"accel": "hvf"}, "tcg, kvm"),
        ({"accel": None}, "tcg, kvm"),
        ({"accel": ["tcg"]}, "tcg, kvm"),
        ({"program": ""}, "must not be empty"),
        ({"program": 7}, "path"),
        ({"program": b"/usr/bin/qemu"}, "path"),
        ({"program": "/usr/\0bin"}, "path"),
        ({"extra_args": "-d int"}, "sequence"),
        ({"extra_args": 3}, "sequence"),
        ({"extra_args": ["-d", 3]}, "strings"),
        ({"extra_args": ["a\0b"]}, "NUL"),
    ],
)
def test_a_wrong_option_is_refused_with_its_rule(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_options(options)


def test_all_that_is_wrong_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options({"accel": "x", "program": 1, "extra_args": 2, "foo": 3})
    assert len(caught.value.problems) == 4
