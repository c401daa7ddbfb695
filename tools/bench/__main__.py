"""The measures: one JSON object on stdout. Run by `nox -s bench`.

Every figure that is compared is a ratio of two programs run in turn, pair by pair, in this one
run, since machines differ and drift. Absolute figures are kept beside them with the machine's
description, to be read with care.

`nox -s bench` runs `lab` and `beside_qemu` in the lab, where KVM boots Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable
from typing import Any


def machine_facts() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0],
    }


def measures(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """By name; each imports what it needs, so that one can be run where another can't."""

    def imports() -> Any:
        from tools.bench.imports import imports

        return imports(args.pairs)

    def boot() -> Any:
        from tools.bench.boot import boots

        return boots(args.pairs)

    def vsock() -> Any:
        import trio

        from tools.bench.vsock import vsock

        return trio.run(vsock, args.size_mib)

    def blk_host() -> Any:
        from tools.bench.blk_host import blk_host

        return blk_host(args.pairs)

    def blk() -> Any:
        import trio

        from tools.bench.blk import blk

        return trio.run(blk, args.pairs)

    def net_host() -> Any:
        from tools.bench.net_host import net_host

        return net_host(args.pairs)

    def socks() -> Any:
        import trio

        from tools.bench.socks import socks

        return trio.run(socks, min(args.size_mib, 32))

    def vpn() -> Any:
        from tools.bench.vpn import vpn

        return vpn(min(args.size_mib, 32), min(args.pairs, 3))

    def beside_qemu() -> Any:
        import trio

        from tools.bench.beside_qemu import beside_qemu

        return trio.run(beside_qemu, args.pairs)

    def exits() -> Any:
        from tools.bench.exits import exits

        return exits(args.pairs)

    def vmm() -> Any:
        from tools.bench.vmm import vmm

        return vmm(args.pairs)

    def lab() -> Any:
        from tools.bench.lab import lab

        return lab(args.pairs)

    return {
        "import": imports,
        "boot": boot,
        "vsock": vsock,
        "socks": socks,
        "vpn": vpn,
        "blk_host": blk_host,
        "blk": blk,
        "net_host": net_host,
        "exits": exits,
        "vmm": vmm,
        "lab": lab,
        "beside_qemu": beside_qemu,
    }


ON_THE_HOST = (
    "import", "boot", "vsock", "blk_host", "blk", "net_host", "socks", "vpn", "exits", "vmm"
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--size-mib", type=int, default=128)
    parser.add_argument("--only", action="append", metavar="NAME", help="run this measure alone")
    args = parser.parse_args()
    known = measures(args)
    report: dict[str, Any] = {"machine": machine_facts()}
    for name in args.only or ON_THE_HOST:
        report[name] = known[name]()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
