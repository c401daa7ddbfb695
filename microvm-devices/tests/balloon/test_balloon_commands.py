"""What a balloon does for who is not in its process: its target, and the guest's figures."""

from typing import Any

import pytest

from microvm.errors import ConfigError, GuestGone
from microvm_devices.balloon import plugin
from microvm_devices.balloon.device import BalloonDevice


def balloon() -> BalloonDevice:
    made = plugin.create({"target_mib": 5})
    assert isinstance(made, BalloonDevice)
    return made


async def test_the_target_is_told_and_set() -> None:
    device = balloon()
    assert await device.command("target", {}) == {"target_mib": 5, "actual_mib": 0}
    device.write_config(4, (3 * 256).to_bytes(4, "little"))
    assert await device.command("target", {"mib": 20}) == {"target_mib": 20, "actual_mib": 3}
    assert device.target_mib == 20


async def test_figures_are_asked_of_the_guest() -> None:
    """How they come is told in test_balloon_device; here there is no guest any more."""
    device = balloon()
    async with device.lifespan():
        pass
    with pytest.raises(GuestGone):
        await device.command("statistics", {})


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("burst", {}),
        ("target", {"mib": -1}),
        ("target", {"mib": "20"}),
        ("target", {"mib": 20.0}),
        ("target", {"mib": True}),
        ("target", {"gib": 1}),
        ("statistics", {"mib": 20}),
    ],
)
async def test_what_it_does_not_know_is_refused(what: str, arguments: dict[str, Any]) -> None:
    device = balloon()
    with pytest.raises(ConfigError):
        await device.command(what, arguments)
    assert device.target_mib == 5
