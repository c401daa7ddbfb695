"""Our disk and QEMU's own, of the same kind, side by side: ratios of what a guest sees.

Both are virtio-blk on virtio-mmio with a raw file in the host's page cache behind it (QEMU's with
``cache=writeback``), and the guest's program takes turns on them, pair by pair.

Here both hang on one machine of QEMU's, ours by vhost-user; each in a VMM of its own, on one KVM,
is `tools.bench.beside_qemu`, in the lab.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from microvm import DriveConfig, Machine, MachineConfig
from tools.bench.side import Side, descendants

MIB = 1024 * 1024
GIB = 1024 * MIB
LOADS = {
    "read_4k_depth_1": ("r", 4096, 1, 1000),
    "read_4k_depth_32": ("r", 4096, 32, 4000),
    "write_4k_depth_1": ("w", 4096, 1, 1000),
    "write_4k_depth_32": ("w", 4096, 32, 4000),
    "read_1m": ("r", MIB, 1, 200),
    "write_1m": ("w", MIB, 1, 200),
}


def images(folder: Path, mib: int = 256) -> None:
    """Two files full of noise, ``ours`` and ``qemus``."""
    for image in ("ours", "qemus"):
        with (folder / image).open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))


def qemus_disk(path: Path) -> tuple[str, ...]:
    """QEMU's words for it."""
    drive = f"file={path},format=raw,if=none,id=theirs,cache=writeback"
    return ("-drive", drive, "-device", "virtio-blk-device,drive=theirs,serial=qemus")


def our_disk(path: Path) -> DriveConfig:
    return DriveConfig(path=path, serial="ours")


async def disk_of(machine: Machine, serial: str) -> str:
    script = f"cd /sys/block; grep -l '^{serial}' vd*/serial"
    found = (await machine.run(["sh", "-c", script], check=True)).stdout.decode()
    return "/dev/" + found.partition("/")[0]


async def blk(pairs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images(folder)
        config = MachineConfig(
            backend="qemu",
            backend_options={"extra_args": qemus_disk(folder / "qemus")},
            drives=[our_disk(folder / "ours")],
        )
        before = descendants()
        async with Machine(config) as machine:
            side = Side(machine, descendants() - before)
            return await measure_disks({"ours": side, "qemus": side}, pairs)


async def measure_disks(sides: dict[str, Side], pairs: int) -> dict[str, Any]:
    """All loads on the disks ``ours`` and ``qemus``, each in its guest."""
    at = {
        name: (side, await side.program("blk_load"), await disk_of(side.machine, name))
        for name, side in sides.items()
    }
    return {load: await _measure(at, load, pairs) for load in LOADS}


async def _measure(at: dict[str, tuple[Side, str, str]], load: str, pairs: int) -> dict[str, Any]:
    kind, size, depth, count = LOADS[load]
    us: dict[str, list[float]] = {name: [] for name in at}
    cpu: dict[str, list[float]] = {name: [] for name in at}
    for _ in range(pairs):
        for name, (side, program, disk) in at.items():
            before = side.cpu_s()
            argv = [program, disk, kind, str(size), str(depth), str(count)]
            done = await side.machine.run(argv, check=True)
            us[name].append(int(done.stdout) / count)
            cpu[name].append((side.cpu_s() - before) * GIB / (size * count))
    return beside(us, cpu, unit="us")


def beside(
    took: dict[str, list[float]], cpu: dict[str, list[float]], *, unit: str
) -> dict[str, Any]:
    """Medians of each, and of the ratio within each pair."""
    ratios = [b / a for a, b in zip(took["ours"], took["qemus"], strict=True)]
    return {
        **{f"{name}_{unit}": round(statistics.median(took[name]), 1) for name in took},
        "speed_of_qemus": round(statistics.median(ratios), 3),
        **{f"{name}_cpu_s_per_gib": round(statistics.median(cpu[name]), 2) for name in cpu},
        "pairs": len(ratios),
    }
