"""What an exit costs: a C loop that does nothing, our vCPU thread, and it beside a busy thread."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from microvm.abc import BusDevice
from microvm.arch.x86_64.registers import RFLAGS_RESERVED, Segment
from microvm.bus import Bus
from microvm.memory import GuestMemory
from microvm.vmm.vcpu_thread import VcpuThread
from tools.bench.stats import summary

HERE = Path(__file__).parent
CODE = {"pio": bytes.fromhex("e680ebfc"), "mmio": bytes.fromhex("a20080ebfb")}
"""As in exit_loop.c: out %al, $0x80 or mov %al, (0x8000), and back."""
LOAD = 0x1000
FLAT_REAL = Segment.from_descriptor(0, 0x0000_9B00_0000_FFFF)


class Counter(BusDevice):
    """Notes when it has been written to so many times."""

    def __init__(self, wanted: int) -> None:
        self._left = wanted
        self.began = time.perf_counter()
        self.done = threading.Event()
        self.ended = 0.0

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._left -= 1
        if not self._left:
            self.ended = time.perf_counter()
            self.done.set()


class _Owner:
    def __init__(self) -> None:
        self.created = threading.Event()
        self.failure: object = None

    def vcpu_created(self, index: int, error: BaseException | None) -> None:
        self.failure = error
        self.created.set()

    def end(self, end: object) -> None:
        self.failure = end

    def vcpu_ended(self, index: int) -> None:
        pass


def python_ns(kind: str, count: int) -> float:
    """Nanoseconds an exit, served by a `VcpuThread`."""
    from microvm_kvm._kvm import KvmHypervisor

    memory = GuestMemory.anonymous(0x1000, start=LOAD)
    memory.write(LOAD, CODE[kind])
    vm = KvmHypervisor().create_vm(vcpu_count=1)
    counter, owner = Counter(count), _Owner()
    addresses, ports = Bus("address"), Bus("port")
    addresses.insert(0x8000, 1, counter)
    ports.insert(0x80, 1, counter)
    for region in memory.regions:
        vm.map_memory(region)
    thread = VcpuThread(
        vm,
        0,
        prepare=lambda vcpu: vcpu.set_registers(
            {
                "cs": FLAT_REAL,
                "ds": Segment.from_descriptor(0, 0x0000_9300_0000_FFFF),
                "rip": LOAD,
                "rflags": RFLAGS_RESERVED,
            }
        ),
        memory=addresses,
        ports=ports,
        owner=owner,
    )
    thread.start()
    owner.created.wait()
    counter.began = time.perf_counter()
    thread.go()
    if not counter.done.wait(60):
        raise SystemExit(f"the guest of the bench stopped: {owner.failure}")
    thread.stop()
    thread.join()
    vm.close()
    return (counter.ended - counter.began) / count * 1e9


def c_ns(program: Path, kind: str, count: int) -> float:
    done = subprocess.run(
        [program, kind, str(count)], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def in_another_process_ns(kind: str, count: int) -> float:
    """The same as `python_ns`, where the engine is with isolation="process"."""
    code = f"from tools.bench.exits import python_ns; print(python_ns({kind!r}, {count}))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


class BusyThread:
    """A thread of this process that computes and never waits, as an application's may."""

    def __enter__(self) -> None:
        self._stop = False
        self._thread = threading.Thread(target=self._compute)
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        self._thread.join()

    def _compute(self) -> None:
        number = 0
        while not self._stop:
            number += 1


def exits(pairs: int, count: int = 20_000) -> dict[str, Any]:
    """Pairs of C and Python, in turn."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "exit_loop"
        compiler = shutil.which("gcc") or "cc"
        subprocess.run([compiler, "-O2", "-o", program, HERE / "exit_loop.c"], check=True)
        for kind in CODE:
            in_c, in_python = [], []
            for _ in range(pairs):
                in_c.append(c_ns(program, kind, count))
                in_python.append(python_ns(kind, count))
            with BusyThread():
                busy = [python_ns(kind, 200) for _ in range(3)]
                worker = [in_another_process_ns(kind, count) for _ in range(3)]
            ratio = sorted(ours / theirs for ours, theirs in zip(in_python, in_c, strict=True))
            report[kind] = {
                "c_loop_ns": summary(in_c),
                "python_ns": summary(in_python),
                "ratio": round(ratio[len(ratio) // 2], 3),
                "python_beside_a_busy_thread_ns": summary(busy),
                "in_a_worker_beside_a_busy_thread_ns": summary(worker),
            }
    return report
