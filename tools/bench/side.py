"""One of two VMMs that take turns: its machine, and what CPU time it has used."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import attrs

from microvm import Machine  # noqa: TC001 - attrs may look at it

TICKS_S = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Side:
    """A machine, and the processes that it runs in."""

    machine: Machine
    pids: frozenset[int]

    def cpu_s(self) -> float:
        """CPU time of the host's processes so far, the guest's own not counted (KVM)."""
        return sum(_cpu_s(pid) for pid in self.pids)

    async def program(self, name: str) -> str:
        """Where the guest has the static program of `tools/bench/NAME.c`."""
        path = f"/tmp/{name}"
        script = f"cat > {path} && chmod +x {path}"
        await self.machine.run(["sh", "-c", script], stdin=build(name), check=True)
        return path


def build(name: str) -> bytes:
    """Compile a program for the guest."""
    compiler = shutil.which("musl-gcc") or "gcc"
    source = Path(__file__).parent / f"{name}.c"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / name
        words = [compiler, "-static", "-O2", "-pthread", "-Wall", "-o", binary, source]
        subprocess.run(words, check=True)
        return binary.read_bytes()


def descendants(pid: int | None = None) -> frozenset[int]:
    """All processes below one, by default this one."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return frozenset(found)


def _cpu_s(pid: int) -> float:
    # proc(5): the name may hold spaces and ends at the last parenthesis; utime, stime and
    # guest_time are the 14th, 15th and 43rd field of the whole line.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, guest = int(fields[11]), int(fields[12]), int(fields[40])
    return (user + system - guest) / TICKS_S
