"""What a console does for who is not in its process: named ports as streams, and a resize."""

from typing import Any

import pytest
import trio

from microvm.errors import ConfigError
from microvm_devices.console import plugin
from microvm_devices.console.device import ConsoleDevice


def console() -> ConsoleDevice:
    made = plugin.create({"ports": ["agent"], "size": (80, 25)})
    assert isinstance(made, ConsoleDevice)
    return made


async def test_a_named_port_is_a_stream() -> None:
    device = console()
    async with device.lifespan():
        async with await device.open_stream("agent") as stream:
            assert isinstance(stream, trio.SocketStream)  # so that it can be handed over
        with pytest.raises(ConfigError, match="no port 'log'"):
            await device.open_stream("log")


async def test_it_can_be_resized() -> None:
    device = console()
    assert await device.command("resize", {"cols": 100, "rows": 50}) == {}
    assert device.read_config(0, 4) == bytes([100, 0, 50, 0])


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("shout", {}),
        ("resize", {}),
        ("resize", {"cols": 100}),
        ("resize", {"cols": 100, "rows": 50, "depth": 1}),
        ("resize", {"cols": "100", "rows": 50}),
        ("resize", {"cols": 0, "rows": 50}),
    ],
)
async def test_what_it_does_not_know_is_refused(what: str, arguments: dict[str, Any]) -> None:
    device = console()
    with pytest.raises(ConfigError):
        await device.command(what, arguments)
    assert device.read_config(0, 4) == bytes([80, 0, 25, 0])
