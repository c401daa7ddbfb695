"""From the start of a process to the agent's hello: ours, and a bare QEMU's with the same guest."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from microvm import MachineConfig
from microvm._assembly import assemble
from microvm.plugins import installed_plugins
from microvm.timeline import BootTimeline
from tools.bench.stats import summary

AGENT_MARK = b"microvm-agent:"
"""What the agent prints on the console when it finds no host to dial, as under bare QEMU: the
same moment at which, with a host, its hello is sent."""

PLAIN_WORDS = "console=ttyS0 quiet panic=-1 reboot=t"
"""The kernel's command line as a person would write it who has not measured boots."""


def bare_command(words: str | None) -> list[str]:
    """QEMU with our kernel, initrd and memory, and nothing else; with our own words if None."""
    plan = assemble(MachineConfig(backend="qemu"), installed_plugins(), BootTimeline()).plan
    return [
        "qemu-system-x86_64",
        *("-M", "microvm,acpi=off,rtc=on", "-accel", "tcg", "-cpu", "max"),
        *("-smp", str(plan.config.vcpu_count), "-m", str(plan.config.mem_size_mib)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(plan.kernel), "-initrd", str(plan.initrd)),
        *("-append", plan.cmdline if words is None else words),
    ]


def bare_boot_ms(command: list[str]) -> float:
    """QEMU alone, from its start to the agent's mark on the console."""
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if AGENT_MARK in line:
                elapsed = time.monotonic() - start
                process.kill()
                return elapsed * 1e3
    raise SystemExit("bare QEMU ended before the agent's mark")


def our_boot(backend: str = "qemu") -> dict[str, float]:
    """`microvm run -- true`: ms from the start of its process, to several points."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "microvm", "run", "--backend", backend, "--json", "--", "true"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    whole = (time.monotonic() - start) * 1e3
    timing = json.loads(done.stdout)["timing"]
    until_hello, phases = 0.0, list(timing.items())
    for phase, ms in phases:
        until_hello += ms
        if phase == "kernel":
            break
    return {
        "hello": until_hello,
        "first_result": timing["agent"] + timing["command"],
        "whole": whole,
        **{f"phase_{phase}": ms for phase, ms in phases},
    }


def boots(pairs: int) -> dict[str, Any]:
    plain, same = bare_command(PLAIN_WORDS), bare_command(None)
    bare_boot_ms(plain), bare_boot_ms(same), our_boot()  # warm the caches
    plain_ms, same_ms, ours = [], [], []
    for _ in range(pairs):
        plain_ms.append(bare_boot_ms(plain))
        ours.append(our_boot())
        same_ms.append(bare_boot_ms(same))
    columns = {key: [run[key] for run in ours] for key in ours[0]}
    hello = statistics.median(columns["hello"])
    return {
        "microvm_run_ms": {key: summary(column) for key, column in columns.items()},
        "bare_qemu_plain_words_ms": summary(plain_ms),
        "bare_qemu_our_words_ms": summary(same_ms),
        "ratio_of_medians_plain_words": round(hello / statistics.median(plain_ms), 4),
        "ratio_of_medians_our_words": round(hello / statistics.median(same_ms), 4),
        "readiness_to_first_result_ms": summary(columns["first_result"]),
    }
