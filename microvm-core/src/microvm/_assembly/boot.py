"""What a machine boots: its provisioners, their disks, the kernel, its command line."""

from __future__ import annotations

import string
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from microvm.boot.files import check_boot_file
from microvm.config import MAX_CMDLINE_BYTES, BootSource, MachineConfig
from microvm.errors import ConfigError

if TYPE_CHECKING:
    from microvm._assembly.problems import Problems
    from microvm.abc import HostedPlatform, Provisioner
    from microvm.plugins import PluginManager


def make_provisioners(
    config: MachineConfig, plugins: PluginManager, problems: Problems
) -> dict[str, Provisioner]:
    """By name, in the order of the configuration."""
    made: dict[str, Provisioner] = {}
    for name in config.provisioners:
        factory = problems.attempt("provisioners", partial(plugins.load_provisioner, name))
        if factory is not None:
            made[name] = factory.create()
    return made


def with_drives(
    config: MachineConfig, provisioners: tuple[Provisioner, ...], problems: Problems
) -> MachineConfig:
    """The configuration with the drives that provisioners bring, behind the user's own."""
    for provisioner in provisioners:
        brought = problems.attempt("drives", partial(provisioner.drives, config))
        if brought:
            config = attrs.evolve(config, drives=(*config.drives, *brought))
    return config


def boot_source(
    config: MachineConfig, provisioners: tuple[Provisioner, ...], problems: Problems
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


def kernel_cmdline(
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
