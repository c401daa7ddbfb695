"""From a configuration to a plan: which backend, which devices, which kernel, every problem.

Synchronous and quick; nothing is started here. Each step that can go wrong adds to one list, so
that a person with three mistakes hears of all three at once.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import attrs

from microvm._assembly.backend import (
    BackendChoice,
    capability_problems,
    choose_backend,
    make_platform,
)
from microvm._assembly.boot import boot_source, kernel_cmdline, make_provisioners, with_drives
from microvm._assembly.devices import channels_of, make_devices
from microvm._assembly.problems import Problems
from microvm._needs import need_problems, root_of
from microvm._same_disk import same_disk_problems
from microvm.abc import Capability, MachinePlan
from microvm.config import ConfigProblem, Isolation, MachineConfig

if TYPE_CHECKING:
    from microvm.abc import AttachedDevice, GuestChannels, HostedPlatform, Provisioner
    from microvm.plugins import PluginManager
    from microvm.timeline import BootTimeline

__all__ = ["Assembly", "BackendChoice", "assemble", "choose_backend", "make_again"]

log = logging.getLogger("microvm")


@attrs.frozen(kw_only=True)
class Assembly:
    """A machine with every choice made, nothing of it started."""

    backend: BackendChoice
    capabilities: frozenset[Capability]
    platform: HostedPlatform
    plan: MachinePlan
    provisioners: tuple[Provisioner, ...]
    channels: GuestChannels | None
    """The device that carries streams into the guest, if the machine has one."""


def assemble(config: MachineConfig, plugins: PluginManager, timeline: BootTimeline) -> Assembly:
    """Make every choice that `config` leaves open.

    Raises:
        BackendUnavailable: no backend can run here, or not the one asked for.
        ConfigError: the configuration and what is installed don't fit; lists every problem.
        PluginError, ImageError: the same, when it is the only problem.
    """
    factory, choice = choose_backend(config, plugins)
    timeline.mark("backend")
    problems = Problems()
    by_name = make_provisioners(config, plugins, problems)
    provisioners = tuple(by_name.values())
    config = with_drives(config, provisioners, problems)
    problems.add(same_disk_problems(config.drives))
    problems.add(capability_problems(config, factory, plugins))
    platform = problems.attempt("backend_options", lambda: make_platform(factory, config, plugins))
    devices = make_devices(config, factory, plugins, problems)
    isolated = config.isolation is Isolation.PROCESS
    if isolated:
        problems.add(_isolation_problems(config, choice, plugins))
    timeline.mark("plugins")
    boot = boot_source(config, provisioners, problems)
    # A disk that was not found would have been the root, perhaps.
    root = None if boot is None or problems.told_of("drives") else root_of(config, boot)
    needs = partial(need_problems, by_name, config, factory, boot, root)
    problems.add(problems.attempt("provisioners", needs) or ())
    problems.add(plugins.check_config(config, choice.name))
    problems.raise_any()
    # From here each step has a value, or raise_any would have raised.
    assert platform is not None
    assert boot is not None
    plan = MachinePlan(
        config=config,
        kernel=boot.kernel,
        initrd=boot.initrd,
        cmdline=kernel_cmdline(config, boot, platform, provisioners, plugins),
        devices=devices,
        timeline=timeline,
    )
    timeline.mark("image")
    assembly = Assembly(
        backend=choice,
        capabilities=factory.capabilities,
        platform=platform,
        plan=plan,
        provisioners=provisioners,
        channels=channels_of(devices),
    )
    return _in_worker(assembly) if isolated else assembly


def make_again(
    backend: str, config: MachineConfig, plugins: PluginManager
) -> tuple[HostedPlatform, tuple[AttachedDevice, ...], GuestChannels | None]:
    """What `assemble` made of a configuration that it found good, in another process.

    Returns:
        The platform, the devices, and the device that carries streams, if there is one.

    Raises:
        MicrovmError: as `assemble`; the two processes see different plugins, or a different host.
    """
    factory = plugins.load_backend(backend)
    problems = Problems()
    platform = problems.attempt("backend_options", lambda: make_platform(factory, config, plugins))
    devices = make_devices(config, factory, plugins, problems)
    problems.raise_any()
    assert platform is not None
    return platform, devices, channels_of(devices)


def _isolation_problems(
    config: MachineConfig, choice: BackendChoice, plugins: PluginManager
) -> list[ConfigProblem]:
    from microvm.worker.checks import isolation_problems

    return isolation_problems(config, choice.name, plugins)


def _in_worker(assembly: Assembly) -> Assembly:
    """The same machine, to be made again in a worker process; what was made here was a trial."""
    from microvm.worker.channels import WorkerChannels
    from microvm.worker.platform import WorkerPlatform

    choice, channels = assembly.backend, WorkerChannels()
    reason = f"{choice.reason}; in a worker process, as isolation asks"
    log.info("backend %s: in a worker process", choice.name)
    has_channels = assembly.channels is not None or Capability.OWN_CHANNELS in assembly.capabilities
    return attrs.evolve(
        assembly,
        backend=attrs.evolve(choice, reason=reason),
        platform=WorkerPlatform(choice.name, channels),
        plan=attrs.evolve(assembly.plan, devices=()),
        channels=channels if has_channels else None,
    )
