"""Streams into a guest and out of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from microvm import Machine, MachineConfig
from tools.bench.stats import summary

ROOT = Path(__file__).parent.parent.parent
MIB = 1024 * 1024
WRITE = 65536


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
