"""The options that describe a machine, shared by every subcommand that starts one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from microvm.cli._machine_help import MachineHelp

if TYPE_CHECKING:
    from microvm.config import MachineConfig
    from microvm.plugins import NetBackendFactory


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend``, ``--mem-size-mib`` and their like."""
    parser.formatter_class = MachineHelp
    group = parser.add_argument_group("machine")
    group.add_argument("--backend", metavar="NAME", help="run on this backend and no other")
    group.add_argument("--mem-size-mib", type=int, default=128, metavar="N", help="default: 128")
    group.add_argument("--vcpus", type=int, default=1, metavar="N", help="default: 1")
    group.add_argument("--kernel", metavar="PATH", help="a kernel of your own (bzImage or ELF)")
    group.add_argument("--initrd", metavar="PATH", help="an initrd of your own")
    group.add_argument("--cmdline", default="", metavar="WORDS", help="more kernel parameters")
    group.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="PATH[,ro][,root]",
        help="a disk: a file or a block device, as it is (raw); may be given several times. Also: "
        "writethrough, serial=TEXT, queues=N, rate=BYTES and iops=N (a second; 64K, 10M and 1G are "
        "powers of 1024). A comma in the path is written twice",
    )
    group.add_argument(
        "--net",
        action="append",
        default=[],
        metavar="BACKEND[:...][,mac=MAC]",
        help="a network device, and what carries it; may be given several times. Behind each may "
        "stand mac=MAC, mtu=N, queues=N, and rate=BYTES a second, for each way, as for disks. The "
        "backends",
    )
    group.add_argument(
        "--net-capture", metavar="FILE", help="write the network's frames to this file (pcap)"
    )
    group.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME[,KEY=VALUE...]",
        help="a device by the name of its plugin; may be given several times",
    )
    group.add_argument(
        "--console",
        default="ring",
        metavar="ring|file:PATH|stdio|pty",
        help="where the guest's console leads: nowhere, into a file, to this terminal (Ctrl-] or "
        "~. leaves), or to a terminal of its own (default: ring)",
    )
    group.add_argument(
        "--console-device",
        choices=("serial", "virtio"),
        default="serial",
        help="what the console is to the guest: ttyS0, or hvc0 (default: serial)",
    )
    group.add_argument(
        "--name", metavar="NAME", help="let other terminals reach it: microvm console NAME"
    )
    group.add_argument(
        "--forward",
        action="append",
        default=[],
        metavar="[ADDR:]PORT:GUESTPORT",
        help="carry connections to a port of this host into the guest; may be given several "
        "times. Either side may be a socket's path, the guest's also vsock:PORT",
    )
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
    import attrs

    from microvm.cli import _option_words as words
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
        console=attrs.evolve(words.parse_console(args.console), device=args.console_device),
        name=args.name,
        drives=tuple(map(words.parse_disk, args.disk)),
        nets=words.parse_nets(args.net, args.net_capture, _net_backend),
        devices=tuple(map(words.parse_device, args.device)),
        backend=args.backend,
        vsock=VsockConfig(uds_path=args.vsock_uds),
        isolation=args.isolation,
        ready_within_s=args.ready_within,
    )


def _net_backend(name: str) -> NetBackendFactory:
    from microvm.plugins import installed_plugins

    return installed_plugins().load_net_backend(name)
