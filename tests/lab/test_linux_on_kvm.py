"""Unmodified Linux on our own VMM: which kernels boot, on what machines, and how each ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from tools.lab.debian_guest import CMDLINE as DEBIAN_CMDLINE

from microvm import BootSource, GuestGone, Machine, MachineConfig, OutcomeReason
from microvm.testing.census import Census
from microvm_guest.image import default_image

MAX_BOOT_EXITS = 400
"""From the first instruction to the agent's hello. It is a count, so it is the same everywhere."""
DEBIAN_KERNEL = os.environ.get("MICROVM_DEBIAN_KERNEL")
DEBIAN_INITRD = os.environ.get("MICROVM_DEBIAN_INITRD")


def kernels() -> dict[str, BootSource]:
    image = default_image()
    found = {
        "our bzImage": BootSource(kernel=image.compressed_kernel, initrd=image.initrd),
        "our PVH ELF": BootSource(kernel=image.kernel, initrd=image.initrd),
    }
    if DEBIAN_KERNEL and DEBIAN_INITRD:
        found["Debian's cloud kernel"] = BootSource(
            kernel=DEBIAN_KERNEL, initrd=DEBIAN_INITRD, cmdline=DEBIAN_CMDLINE
        )
    return found


KERNELS = ("our bzImage", "our PVH ELF", "Debian's cloud kernel")


def on_kvm(kernel: str = "our PVH ELF", **config: object) -> MachineConfig:
    source = kernels().get(kernel)
    if source is None:
        pytest.skip("MICROVM_DEBIAN_KERNEL and MICROVM_DEBIAN_INITRD are not set")
    return MachineConfig(backend="kvm", boot=source, **config)


@pytest.mark.parametrize("kernel", KERNELS)
async def test_a_kernel_boots_and_runs_commands(kernel: str) -> None:
    async with Machine(on_kvm(kernel, mem_size_mib=256)) as machine:
        result = await machine.run(["sh", "-c", "uname -r; echo err >&2; exit 7"])
        assert machine.backend.name == "kvm"
    assert result.exit_code == 7
    assert result.stderr == b"err\n"
    assert (b"cloud" in result.stdout) == ("cloud" in kernel)


@pytest.mark.smp
@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("kernel", KERNELS)
async def test_a_guest_has_as_many_cpus_as_asked(kernel: str, vcpus: int) -> None:
    async with Machine(on_kvm(kernel, mem_size_mib=256, vcpu_count=vcpus)) as machine:
        result = await machine.run(["nproc"], check=True)
        topology = await machine.run(
            ["sh", "-c", "cat /sys/devices/system/cpu/cpu*/topology/physical_package_id"]
        )
    assert int(result.stdout) == vcpus
    assert set(topology.stdout.split()) == {b"0"}


@pytest.mark.parametrize("mem_size_mib", [64, 256, 3 * 1024 + 512])
async def test_a_guest_has_as_much_memory_as_asked(mem_size_mib: int) -> None:
    async with Machine(on_kvm(mem_size_mib=mem_size_mib)) as machine:
        result = await machine.run(["cat", "/proc/meminfo", "/proc/iomem"], check=True)
    total_kib = int(result.stdout.split(b"MemTotal:")[1].split()[0])
    assert 0.75 * mem_size_mib * 1024 < total_kib <= mem_size_mib * 1024
    beyond_4_gib = b"100000000-11fffffff : System RAM" in result.stdout
    assert beyond_4_gib == (mem_size_mib > 3 * 1024)


async def test_a_boot_leaves_the_guest_at_most_400_times() -> None:
    async with Machine(on_kvm()) as machine:
        await machine.wait_ready()
        counts = dict(machine.exit_counts)
    print(json.dumps(counts, indent=1))
    assert sum(counts.values()) <= MAX_BOOT_EXITS


ENDS = {
    "reboot": ("reboot -f", "", OutcomeReason.RESET),
    "power off": ("poweroff -f", "", OutcomeReason.POWERED_OFF),
    "halt": ("halt -f", "", OutcomeReason.POWERED_OFF),
    "panic": ("echo c > /proc/sysrq-trigger", "", OutcomeReason.PANIC),
    "panic that stays": ("echo c > /proc/sysrq-trigger", "panic=0", OutcomeReason.PANIC),
    "triple fault": ("reboot -f", "reboot=t", OutcomeReason.TRIPLE_FAULT),
}


@pytest.mark.smp
@pytest.mark.parametrize(("command", "words", "reason"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("vcpus", [1, 2])
async def test_each_end_of_a_guest_is_told_apart(
    command: str, words: str, reason: OutcomeReason, vcpus: int
) -> None:
    before = Census.take()
    async with Machine(on_kvm(cmdline=words, vcpu_count=vcpus)) as machine:
        with pytest.raises(GuestGone):
            await machine.run(["sh", "-c", f"{command}; sleep 1000"])
        outcome = await machine.wait()
    assert outcome.reason is reason, outcome
    if reason is OutcomeReason.PANIC:
        assert any("Kernel panic" in line for line in outcome.console_tail)
    if reason is OutcomeReason.TRIPLE_FAULT:
        assert any("rip=" in line for line in outcome.cpu_state)
    del machine
    assert Census.take() == before


async def test_a_kernel_with_acpi_powers_off_by_it() -> None:
    async with Machine(on_kvm("Debian's cloud kernel", mem_size_mib=256)) as machine:
        with pytest.raises(GuestGone):
            await machine.run(["sh", "-c", "poweroff -f; sleep 1000"])
        assert (await machine.wait()).reason is OutcomeReason.POWERED_OFF
        assert machine.exit_counts["pio-write 0x600"] == 1


@pytest.mark.smp
async def test_a_guest_is_paused_and_its_clock_told() -> None:
    async with Machine(on_kvm(vcpu_count=2)) as machine:
        guest = await machine.wait_ready()
        stream_of_ticks = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done"
        async with machine.spawn(["sh", "-c", stream_of_ticks]) as process:
            await machine.pause()
            with trio.move_on_after(1) as waited:
                await guest.ping()
            assert waited.cancelled_caught
            await machine.resume()
            assert await guest.ping() > 0
            assert await process.stdout.receive_some() == b"done\n"
        log = await machine.run(["dmesg"])
        assert b"soft lockup" not in log.stdout


@pytest.mark.parametrize("isolation", ["inline", "process"])
def test_kill_9_takes_the_guest_with_it(isolation: str) -> None:
    command = [sys.executable, "-m", "microvm", "run", "--backend", "kvm", "--isolation", isolation]
    with subprocess.Popen(
        [*command, "--", "sh", "-c", "echo up; sleep 1000"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        machines = {pid for pid in (process.pid, *children_of(process.pid)) if has_vcpu(pid)}
        assert (process.pid in machines) == (isolation == "inline")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any(has_vcpu(pid) for pid in machines):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def has_vcpu(pid: int) -> bool:
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    return any("kvm-vcpu" in link for link in links)
