"""The measures: one JSON object on stdout. Run by `nox -s bench`.

Every figure that is compared is a ratio of two programs run in turn, pair by pair, in this one
run, since machines differ and drift. Absolute figures are kept beside them with the machine's
description, to be read with care.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from microvm import Machine, MachineConfig
from microvm._assembly import assemble
from microvm.plugins import installed_plugins
from microvm.timeline import BootTimeline

ROOT = Path(__file__).parent.parent
MIB = 1024 * 1024
WRITE = 65536
AGENT_MARK = b"microvm-agent:"
"""What the agent prints on the console when it finds no host to dial, as under bare QEMU: the
same moment at which, with a host, its hello is sent."""


def summary(samples: list[float]) -> dict[str, float]:
    return {
        "min": round(min(samples), 4),
        "median": round(statistics.median(samples), 4),
        "max": round(max(samples), 4),
        "n": len(samples),
    }


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


PLAIN_WORDS = "console=ttyS0 quiet panic=-1 reboot=t"
"""The kernel's command line as a person would write it who has not measured boots."""


def bare_command(words: str | None) -> list[str]:
    """QEMU with our kernel, initrd and memory, and nothing else; with our own words if None."""
    plan = assemble(MachineConfig(), installed_plugins(), BootTimeline()).plan
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


def our_boot() -> dict[str, float]:
    """`microvm run -- true`: ms from the start of its process, to several points."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "microvm", "run", "--json", "--", "true"],
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


def imports(pairs: int) -> dict[str, Any]:
    def start_ms(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - start) * 1e3

    start_ms("import microvm")
    bare, ours = [], []
    for _ in range(pairs):
        bare.append(start_ms("pass"))
        ours.append(start_ms("import microvm"))
    modules = subprocess.run(
        [sys.executable, "-c", "import microvm, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"trio", "pluggy", "importlib_metadata", "cffi"} & set(modules)
    return {
        "interpreter_ms": summary(bare),
        "with_import_ms": summary(ours),
        "added_ms": round(statistics.median(ours) - statistics.median(bare), 3),
        "heavy_modules": sorted(heavy),
    }


def build_peer() -> bytes:
    compiler = shutil.which("musl-gcc") or "gcc"
    source = ROOT / "tests" / "guest" / "vsock_peer.c"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "peer"
        subprocess.run([compiler, "-static", "-O2", "-o", binary, source], check=True)
        return binary.read_bytes()


async def vsock(size_mib: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    async with Machine(MachineConfig(vcpu_count=1)) as machine:
        peer = build_peer()
        await machine.run(
            ["sh", "-c", "cat > /tmp/peer && chmod +x /tmp/peer"], stdin=peer, check=True
        )
        size = size_mib * MIB
        for streams in (1, 8):
            share = size // streams
            async with machine.spawn(["/tmp/peer", "sink", "5001"]) as process:
                await process.stdout.receive_some()
                results[f"host_to_guest_{streams}_mib_s"] = await rate(
                    streams, share, lambda n: push(machine, 5001, n)
                )
            async with machine.spawn(["/tmp/peer", "source", "5002", str(share)]) as process:
                await process.stdout.receive_some()
                results[f"guest_to_host_{streams}_mib_s"] = await rate(
                    streams, share, lambda n: pull(machine, 5002, n)
                )
        async with machine.spawn(["/tmp/peer", "echo", "5003"]) as process:
            await process.stdout.receive_some()
            results["round_trip_64_bytes_us"] = await round_trips(machine, 5003, 500)
    return results


async def rate(streams: int, share: int, one: Callable[[int], Any]) -> float:
    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(one, share)
    return round(streams * share / MIB / (time.perf_counter() - start), 2)


async def push(machine: Machine, port: int, size: int) -> None:
    stream = await machine.connect(port)
    block = bytes(WRITE)
    async with stream:
        for _ in range(size // WRITE):
            await stream.send_all(block)
        await stream.send_eof()
        answer = b"".join([chunk async for chunk in stream])
    if int(answer) != size // WRITE * WRITE:
        raise SystemExit(f"the guest counted {answer!r} of {size} bytes")


async def pull(machine: Machine, port: int, size: int) -> None:
    total = 0
    stream = await machine.connect(port)
    async with stream:
        async for chunk in stream:
            total += len(chunk)
    if total != size:
        raise SystemExit(f"{total} of {size} bytes came from the guest")


async def round_trips(machine: Machine, port: int, count: int) -> dict[str, float]:
    samples = []
    stream = await machine.connect(port)
    async with stream:
        for _ in range(count):
            start = time.perf_counter()
            await stream.send_all(bytes(64))
            received = 0
            while received < 64:
                received += len(await stream.receive_some())
            samples.append((time.perf_counter() - start) * 1e6)
    return summary(samples)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--size-mib", type=int, default=128)
    args = parser.parse_args()
    report = {
        "machine": machine_facts(),
        "import": imports(args.pairs),
        "boot": boots(args.pairs),
        "vsock": trio.run(vsock, args.size_mib),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
