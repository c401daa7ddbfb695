"""What a backend can't do, told with those that can."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from microvm.abc import Capability
from microvm.config import ConfigProblem

if TYPE_CHECKING:
    from microvm.plugins import BackendFactory, DeviceFactory, PluginManager


def lacks_capability(backend: str, capability: Capability) -> str:
    """The sentence for it, without its beginning in capitals: a place may stand before it."""
    return f"backend {backend!r} has no capability {capability.value!r}."


def capability_remedy(plugins: PluginManager, capability: Capability, what: str) -> str:
    """What to do where the backend has it not.

    Args:
        plugins: Where other backends are found.
        capability: What is lacking.
        what: What it is wanted for, and could be done without.
    """
    return _remedy(plugins, lambda backend: capability in backend.capabilities, what)


def not_attachable(
    where: str, backend: BackendFactory, device: DeviceFactory, plugins: PluginManager
) -> ConfigProblem:
    """The backend takes no devices of that type.

    Args:
        where: Its place in the configuration.
        backend: The one that was chosen.
        device: What it can't take.
        plugins: Where other backends are found.
    """
    if where == "console":
        remedy = (
            "A serial console works with every backend: --console-device serial, "
            'ConsoleConfig(device="serial").'
        )
    else:
        remedy = _remedy(plugins, lambda other: attaches(other, device), repr(device.name))
    what = f"backend {backend.name!r} can't attach {device.name!r} "
    return ConfigProblem(where, f"{what}(virtio device id {device.virtio_id}).", remedy)


def attaches(backend: BackendFactory, device: DeviceFactory) -> bool:
    """Whether a backend takes a device of ours, and one of that type."""
    if Capability.VIRTIO_DEVICES not in backend.capabilities:
        return False
    return backend.virtio_ids is None or device.virtio_id in backend.virtio_ids


def _remedy(plugins: PluginManager, can: Callable[[BackendFactory], bool], what: str) -> str:
    names = sorted(backend.name for backend in plugins.load_backends() if can(backend))
    if not names:
        return f"No backend that is installed can: do without {what}."
    return f"Use a backend that can ({', '.join(names)}), or do without {what}."
