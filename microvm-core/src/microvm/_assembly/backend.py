"""Which backend a machine runs on, and what that can't do of what is asked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from microvm._backend_lacks import capability_remedy, lacks_capability
from microvm.abc import Capability, Hypervisor, ProbeReport
from microvm.config import ConfigProblem, ConsoleOutput, MachineConfig
from microvm.errors import BackendUnavailable

if TYPE_CHECKING:
    from microvm.abc import HostedPlatform
    from microvm.plugins import BackendFactory, PluginManager

log = logging.getLogger("microvm")


@attrs.frozen(kw_only=True)
class BackendChoice:
    """The backend a machine runs on, and why this one."""

    name: str
    reason: str
    report: ProbeReport
    passed_over: tuple[ProbeReport, ...] = ()
    """Backends that are installed and can't run here."""


def choose_backend(
    config: MachineConfig, plugins: PluginManager
) -> tuple[BackendFactory, BackendChoice]:
    """The backend by name, or the one that the `microvm_select_backend` hook picks."""
    if config.backend is not None:
        factory = plugins.load_backend(config.backend)
        report = factory.probe(config.backend_options)
        if not report.usable:
            raise BackendUnavailable(
                f"Backend {factory.name!r} can't run here: {report.reason}", remedy=report.remedy
            )
        choice = BackendChoice(name=factory.name, reason="asked for by name", report=report)
    else:
        factories = {f.name: f for f in plugins.load_backends()}
        if not factories:
            raise BackendUnavailable(
                "No backend is installed.", remedy="Install one: pip install 'microvm-core[host]'"
            )
        reports = [f.probe(config.backend_options) for f in factories.values()]
        name = plugins.select_backend(config, reports)
        if name is None:
            raise BackendUnavailable(
                "None of the installed backends can run here: "
                + " ".join(f"{r.backend}: {r.reason}" for r in reports),
                remedy=" ".join(f"{r.backend}: {r.remedy}" for r in reports if r.remedy) or None,
            )
        factory = factories[name]
        report = next(r for r in reports if r.backend == name)
        passed_over = tuple(r for r in reports if not r.usable)
        others = "; ".join(f"{r.backend} not usable: {r.reason}" for r in passed_over)
        reason = report.reason + (f" ({others})" if others else "")
        choice = BackendChoice(name=name, reason=reason, report=report, passed_over=passed_over)
    log.info("backend %s: %s", choice.name, choice.reason)
    return factory, choice


def make_platform(
    factory: BackendFactory, config: MachineConfig, plugins: PluginManager
) -> HostedPlatform:
    """What the backend is; where it only hands out vCPUs, our own machine on them."""
    made = factory.create(config.backend_options)
    if isinstance(made, Hypervisor):
        from microvm.vmm.platform import HypervisorPlatform

        return HypervisorPlatform(made, plugins.boot_protocol)
    return made


def capability_problems(
    config: MachineConfig, factory: BackendFactory, plugins: PluginManager
) -> list[ConfigProblem]:
    """What is asked for and the backend does not have."""
    problems: list[ConfigProblem] = []

    def need(capability: Capability, wanted: bool, where: str) -> None:
        if wanted and capability not in factory.capabilities:
            remedy = capability_remedy(plugins, capability, where)
            problems.append(
                ConfigProblem(where, lacks_capability(factory.name, capability), remedy)
            )

    need(Capability.OWN_KERNEL, config.boot is not None, "boot")
    need(Capability.CONSOLE, config.console.output is not ConsoleOutput.RING, "console")
    for where in ("drives", "nets", "devices"):
        need(Capability.VIRTIO_DEVICES, bool(getattr(config, where)), where)
    if Capability.OWN_CHANNELS not in factory.capabilities:
        need(Capability.VIRTIO_DEVICES, config.vsock is not None, "vsock")
    return problems
