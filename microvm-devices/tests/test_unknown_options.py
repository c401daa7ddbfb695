"""Every device and net backend says the same of an option that it does not know."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from microvm.errors import ConfigError
from microvm_devices.balloon import plugin as balloon
from microvm_devices.blk import plugin as blk
from microvm_devices.console import plugin as console
from microvm_devices.net import plugin as net
from microvm_devices.net.loopback import plugin as loopback
from microvm_devices.net.null import plugin as null
from microvm_devices.net.passt import plugin as passt
from microvm_devices.net.socket import plugin as socket
from microvm_devices.net.tap import plugin as tap
from microvm_devices.rng import plugin as rng
from microvm_devices.vsock import plugin as vsock

Create = Callable[[Mapping[str, Any]], object]


@pytest.mark.parametrize(
    ("create", "whose", "known"),
    [
        (balloon.create, "balloon device", "target_mib"),
        (blk.create, "blk device", "serial"),
        (console.create, "console device", "ports"),
        (net.create, "net device", "mac"),
        (rng.create, "rng device", "source"),
        (passt.create, "net backend passt", "dns"),
        (socket.create, "net backend socket", "path"),
        (tap.create, "net backend tap", "fds"),
        (vsock.create, "vsock device", "guest_cid"),
    ],
)
def test_all_unknown_options_are_named_with_those_that_there_are(
    create: Create, whose: str, known: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        create({"colour": "red", "age": 3})
    told = [problem for problem in caught.value.problems if "no option" in problem.what]
    assert caught.value.message == f"The {whose} can't be used as given:"
    assert [problem.where for problem in told] == ["age", "colour"]
    for problem in told:
        assert problem.remedy is not None
        assert problem.remedy.startswith("It knows ")
        assert known in problem.remedy


@pytest.mark.parametrize("create", [loopback.create, null.create])
def test_what_has_no_options_says_so(create: Create) -> None:
    with pytest.raises(ConfigError) as caught:
        create({"colour": "red"})
    assert [str(one) for one in caught.value.problems] == [
        "colour: is no option of it. It has none."
    ]
