"""In the lab, where KVM boots Linux: our VMM and QEMU's, on one KVM, with one guest.

Both boot our kernel with the same initramfs and memory, and are waited for until the agent has
come up: under ours it says hello, under QEMU, where it finds no host to dial, it says that. Ratios
of what ran here in turn mean something; the lab's milliseconds do not.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import trio

from microvm import Machine, MachineConfig
from microvm._assembly import assemble
from microvm.plugins import installed_plugins
from microvm.timeline import BootTimeline
from tools.bench.boot import bare_boot_ms, our_boot
from tools.bench.stats import summary


def qemu_on_kvm() -> list[str]:
    """QEMU's microvm machine as it is meant to be used for a short boot, our kernel words given."""
    plan = assemble(MachineConfig(backend="kvm"), installed_plugins(), BootTimeline()).plan
    return [
        "qemu-system-x86_64",
        *("-M", "microvm,acpi=off,rtc=on,pit=on,pic=on", "-accel", "kvm", "-cpu", "host"),
        *("-smp", str(plan.config.vcpu_count), "-m", str(plan.config.mem_size_mib)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(plan.kernel), "-initrd", str(plan.initrd)),
        *("-append", plan.cmdline),
    ]


async def hello_ms() -> dict[str, float]:
    """From `Machine(...)` in an interpreter that has done it before, to the agent's hello."""
    began = time.monotonic()
    async with Machine(MachineConfig(backend="kvm")) as machine:
        await machine.wait_ready()
        ready = (time.monotonic() - began) * 1e3
        phases = dict(machine.timing)
        exits = machine.exit_counts
    return {
        "hello": sum(phases.values()) - phases["agent"],
        "ready": ready,
        **phases,
        "exits": sum(exits.values()),
    }


async def exits(cmdline: str) -> dict[str, Any]:
    async with Machine(MachineConfig(backend="kvm", cmdline=cmdline)) as machine:
        await machine.wait_ready()
        counts = dict(machine.exit_counts)
    return {"exits": sum(counts.values()), "by_place": counts}


def lab(pairs: int) -> dict[str, Any]:
    command = qemu_on_kvm()
    bare_boot_ms(command), trio.run(hello_ms), our_boot("kvm")  # warm the caches
    qemu, warm, cold = [], [], []
    for _ in range(pairs):
        qemu.append(bare_boot_ms(command))
        warm.append(trio.run(hello_ms))
        cold.append(our_boot("kvm"))
    qemu_ms = statistics.median(qemu)
    columns = {key: [run[key] for run in warm] for key in warm[0]}
    from_start = [run["hello"] for run in cold]
    return {
        "qemu_to_mark_ms": summary(qemu),
        "machine_to_hello_ms": summary(columns["hello"]),
        "phases_ms": {k: summary(v) for k, v in columns.items() if k not in ("hello", "exits")},
        "process_start_to_hello_ms": summary(from_start),
        "ratio_machine_to_hello": round(statistics.median(columns["hello"]) / qemu_ms, 3),
        "ratio_process_start_to_hello": round(statistics.median(from_start) / qemu_ms, 3),
        "boot_exits": summary(columns["exits"]),
        "quiet_boot": trio.run(exits, ""),
        "loud_boot": trio.run(exits, "loglevel=7 ignore_loglevel"),
    }
