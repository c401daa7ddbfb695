"""Every hook there is. A hook exists only if a stranger would implement it.

All hooks are synchronous, quick, and called on the trio thread; none is on the path of a VM
exit. Work that waits belongs to the methods of the objects that plugins create. A hook function
may take any subset of the arguments, by their exact names.

Four registration hooks bring a component each, and are called once, when the plugin is loaded.
The others are called while a machine is put together and run, on every plugin installed, whether
or not the machine uses its component: installed is active.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pluggy

from microvm.plugins import PROJECT

if TYPE_CHECKING:
    from microvm._machine import Machine
    from microvm.abc import Guest, ProbeReport
    from microvm.config import ConfigProblem, MachineConfig
    from microvm.outcome import MachineOutcome
    from microvm.plugins import (
        BackendFactory,
        BootProtocol,
        DeviceFactory,
        GuestLayout,
        NetBackendFactory,
        ProvisionerFactory,
    )

hookspec = pluggy.HookspecMarker(PROJECT)

# The bodies are docstrings only, which mypy takes for a function that returns nothing.
# mypy: disable-error-code="empty-body"


@hookspec(historic=True)
def microvm_register_backend() -> BackendFactory:
    """Offer a backend: something that runs machines.

    Called once, when the plugin is loaded. The record's name must be that of the plugin's entry
    point in the group ``microvm.backends``. Import what is heavy inside `probe` and `create`.

    Example:
        from microvm.abc import Capability, ProbeReport
        from microvm.plugins import BackendFactory, hookimpl

        def probe(options):
            return ProbeReport(backend="paper", usable=False, reason="There is no paper here.")

        def create(options):
            from microvm_paper.platform import PaperPlatform
            return PaperPlatform()

        @hookimpl
        def microvm_register_backend():
            return BackendFactory(
                name="paper",
                summary="Machines of paper",
                capabilities=frozenset({Capability.OWN_CHANNELS}),
                probe=probe,
                create=create,
            )
    """


@hookspec(historic=True)
def microvm_register_device() -> DeviceFactory:
    """Offer a virtio device.

    Called once, when the plugin is loaded. The record's name must be that of the plugin's entry
    point in the group ``microvm.devices``. `create` gets the options of each `DeviceConfig` that
    names the device.

    Example:
        from microvm.plugins import DeviceFactory, hookimpl

        def create(options):
            from microvm_dice.device import DiceDevice
            return DiceDevice(seed=options.get("seed", 1))

        @hookimpl
        def microvm_register_device():
            return DeviceFactory(
                name="dice", summary="Repeatable entropy", virtio_id=4, create=create
            )
    """


@hookspec(historic=True)
def microvm_register_net_backend() -> NetBackendFactory:
    """Offer a net backend: what carries a network device's frames on the host.

    Called once, when the plugin is loaded. The record's name must be that of the plugin's entry
    point in the group ``microvm.net_backends``. `create` gets the options of each `NetConfig`
    that names the backend; `parse_cli` makes them of what stands behind the colon in ``--net``.

    Example:
        from microvm.errors import ConfigError
        from microvm.plugins import NetBackendFactory, hookimpl

        def parse_cli(text):
            if not text:
                raise ConfigError("Say which cable: --net string:COLOUR.")
            return {"colour": text}

        def create(options):
            from microvm_string.link import StringBackend
            return StringBackend(**options)

        @hookimpl
        def microvm_register_net_backend():
            return NetBackendFactory(
                name="string",
                summary="Two cans and a string",
                create=create,
                syntax="string:COLOUR",
                parse_cli=parse_cli,
            )
    """


@hookspec(historic=True)
def microvm_register_provisioner() -> ProvisionerFactory:
    """Offer a provisioner: what brings something into the guest, and a way to use it.

    Called once, when the plugin is loaded. The record's name must be that of the plugin's entry
    point in the group ``microvm.provisioners``.

    Example:
        from microvm.plugins import ProvisionerFactory, hookimpl

        def create():
            from my_provisioner.ssh import SshProvisioner
            return SshProvisioner()

        @hookimpl
        def microvm_register_provisioner():
            return ProvisionerFactory(name="ssh", summary="Commands over SSH", create=create)
    """


@hookspec(firstresult=True)
def microvm_select_backend(config: MachineConfig, reports: Sequence[ProbeReport]) -> str | None:
    """Choose the backend of a machine whose configuration names none.

    Called after every installed backend was probed. The first answer that is not None counts.
    Core's own implementation comes last: the usable backend of lowest `preference`.

    Args:
        config: The machine, with `backend` None.
        reports: One report for each backend, in the order in which core would choose.

    Returns:
        The name of a usable backend, or None to leave the choice to others. Another name is an
        error that names the plugin, and the machine is not built.

    Example:
        from microvm.plugins import hookimpl

        @hookimpl
        def microvm_select_backend(reports):
            fast = [report.backend for report in reports if report.usable and report.accelerated]
            return fast[0] if fast else None
    """


@hookspec(firstresult=True)
def microvm_boot_protocol(head: bytes, arch: str) -> BootProtocol | None:
    """Recognise a kernel image, for backends that leave booting to core.

    The first answer that is not None counts; the built-in protocols use this same door and come
    last.

    Args:
        head: The first 4096 bytes of the image, or all of a shorter one. Not to be trusted.
        arch: The guest's architecture as the kernel calls it: ``x86_64``, ``aarch64``.

    Returns:
        How to boot such an image, or None if it is not one of yours.

    Example:
        from microvm.plugins import BootProtocol, hookimpl

        def load(plan, memory):
            memory.write(0x8000, plan.kernel.read_bytes())
            return {"rip": 0x8000}

        @hookimpl
        def microvm_boot_protocol(head, arch):
            if arch == "x86_64" and head.startswith(b"FLAT"):
                return BootProtocol(name="flat", summary="A flat image", load=load)
            return None
    """


@hookspec
def microvm_check_config(config: MachineConfig, backend: str) -> Iterable[ConfigProblem]:
    """Find what is wrong with a machine before it is built.

    Called once for a machine, when its backend is chosen. The problems of all plugins are shown
    at once and the machine is not built. Implementations are called one by one: one that raises
    is logged with its plugin's name, and keeps no other from being heard.

    Args:
        config: The machine as the user described it.
        backend: Name of the backend that was chosen.

    Returns:
        The problems found; an empty list, or None, if there are none. A generator will do.

    Example:
        from microvm.config import ConfigProblem
        from microvm.plugins import hookimpl

        @hookimpl
        def microvm_check_config(config):
            if config.mem_size_mib > 4096:
                yield ConfigProblem("mem_size_mib", "must be at most 4096 here.", "Ask for less.")
    """


@hookspec
def microvm_kernel_cmdline(config: MachineConfig, layout: GuestLayout) -> Iterable[str]:
    """Add words to the guest kernel's command line.

    Called once for a machine, before it starts. The words come after those of the backend and
    the provisioners and before the user's own; for most parameters the last one given wins.

    Args:
        config: The machine as the user described it.
        layout: What is known of the guest's hardware.

    Returns:
        Words of printable ASCII without spaces, one parameter each; an empty list, or None, for
        nothing to add.

    Example:
        from microvm.plugins import hookimpl

        @hookimpl
        def microvm_kernel_cmdline(config, layout):
            return ["quiet", "mitigations=off"]
    """


@hookspec
def microvm_machine_started(machine: Machine) -> None:
    """Learn that a machine runs; its guest still boots.

    Called one by one: an implementation that raises is logged with its plugin's name, and the
    machine goes on.

    Args:
        machine: The machine. Its verbs are async and can't be awaited here.

    Example:
        import logging
        from microvm.plugins import hookimpl

        @hookimpl
        def microvm_machine_started(machine):
            logging.getLogger("my_plugin").info("started on %s", machine.backend.name)
    """


@hookspec
def microvm_guest_ready(machine: Machine, guest: Guest | None) -> None:
    """Learn that every provisioner has brought its part of the guest up.

    Called one by one: an implementation that raises is logged with its plugin's name, and the
    machine goes on.

    Args:
        machine: The machine.
        guest: What runs commands in it; None for a machine without such a provisioner.

    Example:
        import logging
        from microvm.plugins import hookimpl

        @hookimpl
        def microvm_guest_ready(machine):
            logging.getLogger("my_plugin").info("ready: %s", dict(machine.timing))
    """


@hookspec
def microvm_machine_stopped(machine: Machine, outcome: MachineOutcome) -> None:
    """Learn that a machine that had started has ended and nothing of it is left.

    Called one by one: an implementation that raises is logged with its plugin's name.

    Args:
        machine: The machine.
        outcome: How it ended.

    Example:
        import logging
        from microvm.plugins import hookimpl

        @hookimpl
        def microvm_machine_stopped(machine, outcome):
            logging.getLogger("my_plugin").info("%s: %s", outcome.reason, outcome.detail)
    """
