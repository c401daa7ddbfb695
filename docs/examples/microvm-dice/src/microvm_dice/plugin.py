from microvm.config import ConfigProblem
from microvm.errors import ConfigError
from microvm.plugins import DeviceFactory, hookimpl


def create(options):
    seed = options.get("seed", 1)
    problems = [
        ConfigProblem(name, "is no option of this device.", "The only one is seed.")
        for name in sorted(options.keys() - {"seed"})
    ]
    if type(seed) is not int:
        problems.append(ConfigProblem("seed", f"must be a whole number, not {seed!r}."))
    if problems:
        raise ConfigError("The dice device can't be used as given:", problems=problems)
    from microvm_dice.device import DiceDevice

    return DiceDevice(seed)


@hookimpl
def microvm_register_device():
    return DeviceFactory(
        name="dice", summary="Entropy that repeats itself", virtio_id=4, create=create
    )
