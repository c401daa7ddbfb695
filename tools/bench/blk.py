"""Our disk and QEMU's own, of the same kind, side by side in one guest: ratios of what it sees.

Both are virtio-blk on virtio-mmio with a raw file in the host's page cache behind it (QEMU's with
``cache=writeback``), and the guest's program takes turns on them, pair by pair. CPU time is that of
the host's processes: our devices are in this one, QEMU's own in QEMU's, with the guest itself.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from microvm import DriveConfig, Machine, MachineConfig

MIB = 1024 * 1024
DISK_BYTES = 256 * MIB
LOADS = {
    "read_4k_depth_1": ("r", 4096, 1, 1000),
    "read_4k_depth_32": ("r", 4096, 32, 4000),
    "write_4k_depth_1": ("w", 4096, 1, 1000),
    "write_4k_depth_32": ("w", 4096, 32, 4000),
    "read_1m": ("r", MIB, 1, 200),
    "write_1m": ("w", MIB, 1, 200),
}


def build_load() -> bytes:
    compiler = shutil.which("musl-gcc") or "gcc"
    source = Path(__file__).parent / "blk_load.c"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "load"
        subprocess.run(
            [compiler, "-static", "-O2", "-pthread", "-Wall", "-o", binary, source], check=True
        )
        return binary.read_bytes()


async def disk_of(machine: Machine, serial: str) -> str:
    script = f"cd /sys/block; grep -l '^{serial}' vd*/serial"
    found = (await machine.run(["sh", "-c", script], check=True)).stdout.decode()
    return "/dev/" + found.partition("/")[0]


async def blk(pairs: int, **machine: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for image in ("ours", "qemus"):
            with (folder / image).open("wb") as file:
                for _ in range(DISK_BYTES // MIB):
                    file.write(os.urandom(MIB))
        drive = f"file={folder / 'qemus'},format=raw,if=none,id=theirs,cache=writeback"
        device = "virtio-blk-device,drive=theirs,serial=qemus"
        config = MachineConfig(
            backend="qemu",
            backend_options={"extra_args": ["-drive", drive, "-device", device]},
            drives=[DriveConfig(path=folder / "ours", serial="ours")],
            **machine,
        )
        async with Machine(config) as running:
            await running.run(
                ["sh", "-c", "cat > /tmp/load && chmod +x /tmp/load"],
                stdin=build_load(),
                check=True,
            )
            disks = {serial: await disk_of(running, serial) for serial in ("ours", "qemus")}
            return {name: await measure(running, disks, name, pairs) for name in LOADS}


async def measure(machine: Machine, disks: dict[str, str], name: str, pairs: int) -> dict[str, Any]:
    kind, size, depth, count = LOADS[name]
    us: dict[str, list[float]] = {serial: [] for serial in disks}
    cpu_us = []
    for _ in range(pairs):
        for serial, disk in disks.items():
            before = sum(os.times()[:2])
            argv = ["/tmp/load", disk, kind, str(size), str(depth), str(count)]
            done = await machine.run(argv, check=True)
            us[serial].append(int(done.stdout) / count)
            if serial == "ours":
                cpu_us.append((sum(os.times()[:2]) - before) / count * 1e6)
    return {
        "ours_us": round(statistics.median(us["ours"]), 1),
        "qemus_us": round(statistics.median(us["qemus"]), 1),
        "speed_of_qemus": round(
            statistics.median(b / a for a, b in zip(us["ours"], us["qemus"], strict=True)), 3
        ),
        "our_cpu_us": round(statistics.median(cpu_us), 1),
        "pairs": pairs,
    }
