"""The options that describe a machine, shared by every subcommand that starts one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microvm.config import MachineConfig


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend``, ``--mem-size-mib`` and their like."""
    group = parser.add_argument_group("machine")
    group.add_argument("--backend", metavar="NAME", help="run on this backend and no other")
    group.add_argument("--mem-size-mib", type=int, default=128, metavar="N", help="default: 128")
    group.add_argument("--vcpus", type=int, default=1, metavar="N", help="default: 1")
    group.add_argument("--kernel", metavar="PATH", help="a kernel of your own (bzImage or ELF)")
    group.add_argument("--initrd", metavar="PATH", help="an initrd of your own")
    group.add_argument("--cmdline", default="", metavar="WORDS", help="more kernel parameters")
    group.add_argument(
        "--vsock-uds",
        metavar="PATH",
        help="let other processes reach guest ports through this AF_UNIX socket",
    )
    group.add_argument(
        "--isolation",
        choices=("inline", "process"),
        default="inline",
        help="serve the machine in this process, or in a worker process (default: inline)",
    )
    group.add_argument(
        "--ready-within",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="give up on a guest that has not reported by then (default: 60)",
    )


def machine_config(args: argparse.Namespace) -> MachineConfig:
    """The configuration those options describe.

    Raises:
        ConfigError: they don't fit together.
    """
    from microvm.config import BootSource, MachineConfig, VsockConfig
    from microvm.errors import ConfigError

    boot = None
    if args.kernel is not None:
        boot = BootSource(kernel=args.kernel, initrd=args.initrd)
    elif args.initrd is not None:
        raise ConfigError("--initrd was given without a kernel.", remedy="Add --kernel PATH.")
    return MachineConfig(
        mem_size_mib=args.mem_size_mib,
        vcpu_count=args.vcpus,
        boot=boot,
        cmdline=args.cmdline,
        backend=args.backend,
        vsock=VsockConfig(uds_path=args.vsock_uds),
        isolation=args.isolation,
        ready_within_s=args.ready_within,
    )
