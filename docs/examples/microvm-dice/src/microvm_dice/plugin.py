"""What microvm finds through the entry point. The device is imported when one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microvm.config import ConfigProblem
from microvm.errors import ConfigError
from microvm.plugins import DeviceFactory, hookimpl
from microvm.virtio.ids import DeviceType

if TYPE_CHECKING:
    from microvm_dice.device import DiceDevice


def create(options: Mapping[str, Any]) -> DiceDevice:
    """Make a device; every problem with the options is told at once."""
    problems = [
        ConfigProblem(name, "is no option of this device.", "The only one is seed.")
        for name in sorted(options.keys() - {"seed"})
    ]
    seed = options.get("seed", 1)
    if not isinstance(seed, int) or isinstance(seed, bool):
        problems.append(ConfigProblem("seed", f"must be a whole number, not {seed!r}."))
    if problems:
        raise ConfigError("The dice device can't be used as given:", problems=problems)
    from microvm_dice.device import DiceDevice

    return DiceDevice(seed=seed)


@hookimpl
def microvm_register_device() -> DeviceFactory:
    """Offer the device under the entry point's name."""
    return DeviceFactory(
        name="dice",
        summary="Entropy that repeats itself, for tests",
        virtio_id=DeviceType.ENTROPY,
        create=create,
    )
