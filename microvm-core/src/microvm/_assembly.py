"""From a configuration to a plan: which backend, which devices, which kernel, every problem.

Synchronous and quick; nothing is started here. Each step that can go wrong adds to one list, so
that a person with three mistakes hears of all three at once.

Long: the choice of a backend and the devices of a configuration would part well.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs

from microvm._backend_lacks import (
    attaches,
    capability_remedy,
    lacks_capability,
    not_attachable,
)
from microvm._needs import need_problems, root_of
from microvm._same_disk import same_disk_problems
from microvm.abc import (
    AttachedDevice,
    Capability,
    GuestChannels,
    Hypervisor,
    MachinePlan,
    ProbeReport,
)
from microvm.boot.files import check_boot_file
from microvm.config import (
    MAX_CMDLINE_BYTES,
    BootSource,
    ConfigProblem,
    ConsoleDevice,
    ConsoleOutput,
    DeviceConfig,
    DriveConfig,
    Isolation,
    MachineConfig,
    NetConfig,
    VsockConfig,
)
from microvm.errors import BackendUnavailable, ConfigError, MicrovmError

if TYPE_CHECKING:
    from microvm.abc import HostedPlatform, NetBackend, Provisioner
    from microvm.plugins import BackendFactory, PluginManager
    from microvm.timeline import BootTimeline

log = logging.getLogger("microvm")

T = TypeVar("T")

BACKENDS = "microvm.backends"
DEVICES = "microvm.devices"
PROVISIONERS = "microvm.provisioners"
CONSOLE = "console"
"""The device plugin that a virtio console comes from."""


@attrs.frozen(kw_only=True)
class BackendChoice:
    """The backend a machine runs on, and why this one."""

    name: str
    reason: str
    report: ProbeReport
    passed_over: tuple[ProbeReport, ...] = ()
    """Backends that are installed and can't run here."""


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


class _Problems:
    """Errors of independent steps, kept until all steps have had their turn."""

    def __init__(self) -> None:
        self._found: list[tuple[str, MicrovmError]] = []

    def attempt(self, where: str, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except MicrovmError as error:
            self._found.append((where, _placed(where, error)))
            return None

    def add(self, problems: Iterable[ConfigProblem]) -> None:
        for problem in problems:
            error = ConfigError("The machine can't be built as described:", problems=[problem])
            self._found.append((problem.where, error))

    def told_of(self, where: str) -> bool:
        """Whether there is one of that place already."""
        return any(place == where for place, _ in self._found)

    def raise_any(self) -> None:
        """One error comes out as itself, with its own type; several as one `ConfigError`."""
        if len(self._found) == 1:
            raise self._found[0][1]
        if self._found:
            problems: list[ConfigProblem] = []
            for where, error in self._found:
                if isinstance(error, ConfigError) and error.problems:
                    problems.extend(error.problems)
                else:
                    problems.append(ConfigProblem(where, error.message, error.remedy))
            raise ConfigError("The machine can't be built as described:", problems=problems)


def _placed(where: str, error: MicrovmError) -> MicrovmError:
    """The error, its problems named by their place in the whole configuration."""
    if not isinstance(error, ConfigError) or not error.problems:
        return error
    problems = [
        problem
        if problem.where.startswith(where)
        else attrs.evolve(problem, where=f"{where}.{problem.where}")
        for problem in error.problems
    ]
    return ConfigError(error.message, remedy=error.remedy, problems=problems)


def assemble(config: MachineConfig, plugins: PluginManager, timeline: BootTimeline) -> Assembly:
    """Make every choice that `config` leaves open.

    Raises:
        BackendUnavailable: no backend can run here, or not the one asked for.
        ConfigError: the configuration and what is installed don't fit; lists every problem.
        PluginError, ImageError: the same, when it is the only problem.
    """
    factory, choice = choose_backend(config, plugins)
    timeline.mark("backend")
    problems = _Problems()
    by_name = _make_provisioners(config, plugins, problems)
    provisioners = tuple(by_name.values())
    config = _with_drives(config, provisioners, problems)
    problems.add(same_disk_problems(config.drives))
    problems.add(_capability_problems(config, factory, plugins))
    platform = problems.attempt("backend_options", lambda: _platform(factory, config, plugins))
    devices = _make_devices(config, factory, plugins, problems)
    isolated = config.isolation is Isolation.PROCESS
    if isolated:
        problems.add(_isolation_problems(config, choice, plugins))
    timeline.mark("plugins")
    boot = _boot_source(config, provisioners, problems)
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
        cmdline=_cmdline(config, boot, platform, provisioners, plugins),
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
        channels=_channels_of(devices),
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
    problems = _Problems()
    platform = problems.attempt("backend_options", lambda: _platform(factory, config, plugins))
    devices = _make_devices(config, factory, plugins, problems)
    problems.raise_any()
    assert platform is not None
    return platform, devices, _channels_of(devices)


def _channels_of(devices: tuple[AttachedDevice, ...]) -> GuestChannels | None:
    return next((d.device for d in devices if isinstance(d.device, GuestChannels)), None)


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


def _platform(
    factory: BackendFactory, config: MachineConfig, plugins: PluginManager
) -> HostedPlatform:
    """What the backend is; where it only hands out vCPUs, our own machine on them."""
    made = factory.create(config.backend_options)
    if isinstance(made, Hypervisor):
        from microvm.vmm.platform import HypervisorPlatform

        return HypervisorPlatform(made, plugins.boot_protocol)
    return made


def _capability_problems(
    config: MachineConfig, factory: BackendFactory, plugins: PluginManager
) -> list[ConfigProblem]:
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


def _make_devices(
    config: MachineConfig, backend: BackendFactory, plugins: PluginManager, problems: _Problems
) -> tuple[AttachedDevice, ...]:
    if Capability.VIRTIO_DEVICES not in backend.capabilities:
        return ()
    wanted = _wanted_devices(config, plugins, problems)
    made = (_make_device(device, backend, plugins, problems) for device in wanted)
    return tuple(device for device in made if device is not None)


@attrs.frozen(kw_only=True)
class _WantedDevice:
    """A device in the form that plugins take, and where the configuration asks for it."""

    where: str
    config: DeviceConfig


def _wanted_devices(
    config: MachineConfig, plugins: PluginManager, problems: _Problems
) -> list[_WantedDevice]:
    """Every device, as the guest finds them: vsock, drives, nets, console, others."""
    wanted = []
    if config.vsock is not None:
        wanted.append(_WantedDevice(where="vsock", config=device_of_vsock(config.vsock)))
    wanted += [
        _WantedDevice(where=f"drives[{index}]", config=device_of_drive(drive))
        for index, drive in enumerate(config.drives)
    ]
    for index, net in enumerate(config.nets):
        where = f"nets[{index}]"
        backend = _net_backend(net, where, plugins, problems)
        if backend is not None:
            wanted.append(_WantedDevice(where=where, config=device_of_net(net, backend)))
    named = {device.name for device in config.devices}
    if config.console.device is ConsoleDevice.VIRTIO and CONSOLE not in named:
        wanted.append(_WantedDevice(where="console", config=DeviceConfig(name=CONSOLE)))
    wanted += [
        _WantedDevice(where=f"devices[{index}]", config=device)
        for index, device in enumerate(config.devices)
    ]
    return wanted


def device_of_vsock(vsock: VsockConfig) -> DeviceConfig:
    """The vsock device, as its plugin is asked for it."""
    return DeviceConfig(
        name="vsock", options={"guest_cid": vsock.guest_cid, "uds_path": vsock.uds_path}
    )


def device_of_drive(drive: DriveConfig) -> DeviceConfig:
    """A drive, as the plugin of disks is asked for it: what the guest does with it is not in it."""
    options = {
        field.name: getattr(drive, field.name)
        for field in attrs.fields(DriveConfig)
        if field.name != "root"
    }
    return DeviceConfig(name="blk", options=options)


def device_of_net(net: NetConfig, backend: NetBackend) -> DeviceConfig:
    """A network device, as its plugin is asked for it, with what carries its frames."""
    options = {
        field.name: getattr(net, field.name)
        for field in attrs.fields(NetConfig)
        if field.name != "options"
    }
    return DeviceConfig(name="net", options=options | {"backend": backend})


def _net_backend(
    net: NetConfig, where: str, plugins: PluginManager, problems: _Problems
) -> NetBackend | None:
    factory = problems.attempt(f"{where}.backend", partial(plugins.load_net_backend, net.backend))
    if factory is None:
        return None
    return problems.attempt(f"{where}.options", partial(factory.create, net.options))


def _make_device(
    wanted: _WantedDevice, backend: BackendFactory, plugins: PluginManager, problems: _Problems
) -> AttachedDevice | None:
    name, where = wanted.config.name, wanted.where
    factory = problems.attempt(where, partial(plugins.load_device, name))
    if factory is None:
        return None
    if not attaches(backend, factory):
        problems.add([not_attachable(where, backend, factory, plugins)])
        return None
    device = problems.attempt(where, partial(factory.create, wanted.config.options))
    return None if device is None else AttachedDevice(name=name, device=device)


def _make_provisioners(
    config: MachineConfig, plugins: PluginManager, problems: _Problems
) -> dict[str, Provisioner]:
    made: dict[str, Provisioner] = {}
    for name in config.provisioners:
        factory = problems.attempt("provisioners", partial(plugins.load_provisioner, name))
        if factory is not None:
            made[name] = factory.create()
    return made


def _with_drives(
    config: MachineConfig, provisioners: tuple[Provisioner, ...], problems: _Problems
) -> MachineConfig:
    """The configuration with the drives that provisioners bring, behind the user's own."""
    for provisioner in provisioners:
        brought = problems.attempt("drives", partial(provisioner.drives, config))
        if brought:
            config = attrs.evolve(config, drives=(*config.drives, *brought))
    return config


def _boot_source(
    config: MachineConfig, provisioners: tuple[Provisioner, ...], problems: _Problems
) -> BootSource | None:
    """The user's own, or the first that a provisioner brings; its files looked at, not trusted."""

    def find() -> BootSource:
        if config.boot is not None:
            return config.boot
        for provisioner in provisioners:
            source = provisioner.boot_source(config)
            if source is not None:
                return source
        raise ConfigError(
            "There is nothing to boot.",
            remedy="Give boot=BootSource(kernel=...), or a provisioner that brings an image.",
        )

    boot = problems.attempt("boot", find)
    if boot is None:
        return None
    problems.attempt("boot.kernel", lambda: check_boot_file(boot.kernel, "kernel"))
    if boot.initrd is not None:
        initrd: Path = boot.initrd
        problems.attempt("boot.initrd", lambda: check_boot_file(initrd, "initrd"))
    return boot


def _root_words(config: MachineConfig) -> list[str]:
    """Which drive is the root file system; Linux names virtio disks in the order they come."""
    return [
        word
        for letter, drive in zip(string.ascii_lowercase, config.drives, strict=False)
        if drive.root
        for word in (f"root=/dev/vd{letter}", "ro" if drive.read_only else "rw")
    ]


def _cmdline(
    config: MachineConfig,
    boot: BootSource,
    platform: HostedPlatform,
    provisioners: tuple[Provisioner, ...],
    plugins: PluginManager,
) -> str:
    """Words in rising order of who decides: platform, provisioners, hooks, image, user."""
    words = [*platform.kernel_cmdline(config), *_root_words(config)]
    for provisioner in provisioners:
        words.extend(provisioner.kernel_cmdline(config))
    words.extend(plugins.kernel_cmdline(config))
    words.extend(part for part in (boot.cmdline, config.cmdline) if part)
    line = " ".join(words)
    if len(line.encode()) > MAX_CMDLINE_BYTES:
        raise ConfigError(
            f"The kernel command line would be {len(line.encode())} bytes; "
            f"the kernel takes {MAX_CMDLINE_BYTES}.",
            remedy="Shorten cmdline, or what plugins add to it.",
        )
    return line
