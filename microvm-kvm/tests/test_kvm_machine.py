"""Whole machines on the KVM of this machine, whatever it is good for: guests of a few bytes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio

import microvm_kvm.plugin
from microvm import BackendUnavailable, BootSource, DeviceConfig, Machine, MachineConfig
from microvm.abc import ProbeReport
from microvm.arch.x86_64 import layout
from microvm.outcome import MachineOutcome, OutcomeReason
from microvm.plugins import DeviceFactory, PluginManager
from microvm.testing.census import nothing_grows
from microvm.testing.micro_guest import MicroGuest
from microvm.testing.mmio_bench import UpperDevice
from microvm.testing.plugins import plugin_manager
from microvm.virtio.features import VERSION_1
from microvm.virtio.queue import QueueLayout

pytestmark = pytest.mark.kvm

SMALL = {"small_guests": True}
WITHIN_S = 20
HOLE = 0xE000_0000
"""An address where there is nothing."""


@pytest.fixture(autouse=True)
def report() -> ProbeReport:
    found = microvm_kvm.plugin.probe(SMALL)
    if not found.usable:
        pytest.skip(found.reason)
    return found


@pytest.fixture
def upper() -> UpperDevice:
    return UpperDevice()


@pytest.fixture
def plugins(upper: UpperDevice) -> PluginManager:
    factory = DeviceFactory(
        name="upper", summary="capitals", virtio_id=42, create=lambda options: upper
    )
    return plugin_manager(factory, plugins={"backend/kvm": microvm_kvm.plugin})


@pytest.fixture
def machine_of(tmp_path: Path, plugins: PluginManager):
    def build(guest: MicroGuest, **config: object) -> Machine:
        kernel = tmp_path / "guest.elf"
        kernel.write_bytes(guest.image())
        given = {
            "mem_size_mib": 40,
            "vsock": None,
            "provisioners": (),
            "backend": "kvm",
            "backend_options": SMALL,
            **config,
        }
        return Machine(MachineConfig(boot=BootSource(kernel=kernel), **given), plugins=plugins)

    return build


def saying(text: str) -> MicroGuest:
    """A guest that prints, a byte at a time: `out 0xf8` has but 8 bits for the port."""
    guest = MicroGuest()
    for byte in text.encode():
        guest.out_port(layout.COM1, byte)
    return guest


async def ending(machine: Machine) -> MachineOutcome:
    with trio.fail_after(WITHIN_S):
        async with machine:
            return await machine.wait()


async def test_a_guest_prints_and_resets_by_the_keyboard_controller(machine_of) -> None:
    guest = saying("hello\n")
    guest.out_port(layout.I8042_COMMAND, 0xFE)
    machine = machine_of(guest)
    outcome = await ending(machine)
    assert outcome.reason is OutcomeReason.RESET
    assert outcome.console_tail == ("hello",)
    assert machine.exit_counts == {"pio-write 0x3f8": 6, "pio-write 0x64": 1}


async def test_a_guest_powers_off_by_acpi(machine_of) -> None:
    guest = MicroGuest()
    guest.out_port(layout.ACPI_PM, layout.ACPI_S5_SLP_TYP << 2 | 0x20)
    assert (await ending(machine_of(guest))).reason is OutcomeReason.POWERED_OFF


async def test_a_triple_fault_is_told_with_registers_and_code(machine_of) -> None:
    """Rows 95 and 96."""
    guest = MicroGuest()
    guest.code(b"\x0f\x0b")  # ud2, and there is no IDT
    outcome = await ending(machine_of(guest))
    assert outcome.reason is OutcomeReason.TRIPLE_FAULT
    assert any("rip=0x200000" in line for line in outcome.cpu_state)
    assert outcome.cpu_state[-1].startswith("code: 0f 0b")


async def test_an_instruction_that_kvm_can_not_emulate_is_told_as_such(machine_of, report) -> None:
    if report.accelerated:
        pytest.skip("this KVM emulates nothing: the CPU runs it")
    guest = MicroGuest()
    guest.code(bytes.fromhex("f30fb8c0"))  # popcnt eax, eax
    outcome = await ending(machine_of(guest))
    assert outcome.reason is OutcomeReason.INTERNAL_ERROR
    assert outcome.cpu_state[-1].startswith("code: f3 0f b8 c0")


async def test_a_guest_that_halts_with_interrupts_off_has_ended(machine_of) -> None:
    """Row 95."""
    guest = MicroGuest()
    guest.halt()
    assert (await ending(machine_of(guest))).reason is OutcomeReason.HALTED


@pytest.mark.parametrize("vcpus", [1, 4])
async def test_a_guest_that_spins_with_interrupts_off_is_stopped_within_a_second(
    machine_of, vcpus
) -> None:
    """Row 95."""
    guest = saying("up\n")
    guest.code(b"\xeb\xfe")  # jmp .
    async with machine_of(guest, vcpu_count=vcpus) as machine:
        while machine.console_tail != ("up",):  # noqa: ASYNC110 - the guest's memory is the event
            await trio.sleep(0.001)
        with trio.fail_after(1):
            outcome = await machine.stop()
    assert outcome.reason is OutcomeReason.STOPPED


async def test_a_flood_of_output_is_bounded_and_the_loop_goes_on(machine_of) -> None:
    guest = MicroGuest()
    guest.code(bytes.fromhex("66baf803b041eeebfd"))  # mov dx, 0x3f8; mov al, 'A'; out; jmp out
    worst = 0.0
    async with machine_of(guest) as machine:
        for _ in range(100):
            began = time.monotonic()
            await trio.sleep(0.001)
            worst = max(worst, time.monotonic() - began)
        assert len(machine.console_tail[0]) <= 410
    print(f"worst wait of the trio loop: {worst * 1000:.1f} ms")
    assert worst < 1


async def test_a_guests_driver_is_served_through_doorbell_and_interrupt(
    machine_of, upper: UpperDevice
) -> None:
    rings = QueueLayout(size=16, desc=0x30_0000, avail=0x30_1000, used=0x30_2000)
    question, answer = 0x30_3000, 0x30_4000
    descriptors = b"".join(
        address.to_bytes(8, "little")
        + (5).to_bytes(4, "little")
        + flags.to_bytes(2, "little")
        + (1).to_bytes(2, "little")
        for address, flags in ((question, 1), (answer, 2))
    )
    guest = MicroGuest()
    guest.data(rings.desc, descriptors)
    guest.data(question, b"hello")
    guest.data(rings.avail, bytes.fromhex("0000 0100 0000"))
    guest.find_device(42, [layout.virtio_mmio_base(index) for index in range(4)])
    guest.drive([rings], VERSION_1)
    guest.notify(0)
    guest.wait_for_u16(rings.used + 2, 1)
    for at in range(5):
        guest.load_byte(answer + at)
        guest.out_al_port(layout.COM1)
    guest.out_port(layout.I8042_COMMAND, 0xFE)
    machine = machine_of(guest, devices=[DeviceConfig(name="upper")])
    outcome = await ending(machine)
    assert outcome.console_tail == ("HELLO",)
    assert upper.diary == ["reset", "run", "end", "reset"]
    # The doorbell is KVM's: no exit for it.
    notify = f"mmio-write {layout.virtio_mmio_base(0) + 0x50:#x}"
    assert notify not in machine.exit_counts


async def test_a_paused_guest_stands_still_and_goes_on(machine_of) -> None:
    guest = MicroGuest()
    guest.code(bytes.fromhex("e680ebfc"))  # out 0x80, al; jmp back
    async with machine_of(guest) as machine:
        await machine.pause()
        before = dict(machine.exit_counts)
        await trio.sleep(0.05)
        assert dict(machine.exit_counts) == before
        await machine.resume()
        with trio.fail_after(WITHIN_S):
            while dict(machine.exit_counts) == before:  # noqa: ASYNC110 - counted by the vCPU
                await trio.sleep(0.001)


def test_without_the_option_a_kvm_that_emulates_is_refused_with_the_reason(
    tmp_path: Path, plugins: PluginManager, report
) -> None:
    if report.accelerated:
        pytest.skip("this KVM runs kernels")
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(MicroGuest().image())
    config = MachineConfig(backend="kvm", boot=BootSource(kernel=kernel), provisioners=())

    async def start() -> None:
        async with Machine(config, plugins=plugins):
            pass

    with pytest.raises(BackendUnavailable, match="small guests only") as caught:
        trio.run(start)
    assert "microvm-qemu" in caught.value.remedy


PRELUDE = """
import sys, time, trio
from microvm import BootSource, Machine, MachineConfig, sync
config = MachineConfig(
    backend="kvm", backend_options={"small_guests": True}, mem_size_mib=40, vsock=None,
    provisioners=(), boot=BootSource(kernel=sys.argv[1]), vcpu_count=2,
)
"""
RUN_FOREVER = """
async def main():
    async with Machine(config):
        print("up", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
LEAVE_A_MACHINE = """
machine = sync.Machine(config).__enter__()
print("up", flush=True)
sys.exit(7)
"""
LEAVE_AN_ENGINE = """
from microvm._assembly import assemble
from microvm.plugins import installed_plugins
from microvm.timeline import BootTimeline
assembly = assemble(config, installed_plugins(), BootTimeline())
launched = assembly.platform.prelaunch(assembly.plan)
launched.__enter__()
time.sleep(0.2)  # the guest runs, and nothing is in the way of its threads
print("up", flush=True)
sys.exit(7)
"""

SPINNING = MicroGuest()
SPINNING.code(b"\xeb\xfe")
EXITING = MicroGuest()
EXITING.code(bytes.fromhex("e680ebfc"))  # out 0x80, al; jmp back


@pytest.fixture
def argv(tmp_path: Path):
    """A program, and the guest that it runs."""

    def build(program: str, guest: MicroGuest) -> list[str]:
        kernel = tmp_path / "guest.elf"
        kernel.write_bytes(guest.image())
        return [sys.executable, "-c", PRELUDE + program, str(kernel)]

    return build


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_ended_takes_its_machine_along(argv, number) -> None:
    with subprocess.Popen(
        argv(RUN_FOREVER, SPINNING), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(timeout=10) in (-number, 1)
    assert not os.path.exists(f"/proc/{process.pid}")


START_WITH_ALL_THAT_IS_LOCKED = """
from pathlib import Path
import attrs
from microvm import DriveConfig, VsockConfig
here = Path(sys.argv[1]).parent
config = attrs.evolve(
    config, drives=(DriveConfig(path=here / "disk"),), vsock=VsockConfig(uds_path=here / "vsock")
)
"""


@pytest.mark.slow
def test_a_machine_that_is_killed_at_any_moment_is_in_nobodys_way(argv, tmp_path: Path) -> None:
    """Row 94: of its socket, of its lock on a disk."""
    pytest.importorskip("microvm_devices")
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    command = argv(START_WITH_ALL_THAT_IS_LOCKED + RUN_FOREVER, SPINNING)
    chance = random.Random(94)

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with started() as process:
        began = time.monotonic()
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        takes_s = time.monotonic() - began
        process.kill()
    for _ in range(30):
        with started() as process:
            time.sleep(chance.uniform(0, 1.2 * takes_s))
            assert process.poll() is None, process.stderr and process.stderr.read()
            process.kill()
    with started() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()


@pytest.mark.parametrize("guest", [SPINNING, EXITING], ids=["spinning", "exiting"])
@pytest.mark.parametrize("program", [LEAVE_A_MACHINE, LEAVE_AN_ENGINE], ids=["machine", "engine"])
def test_an_interpreter_that_ends_with_a_machine_running_ends_quietly(argv, program, guest) -> None:
    """Row 99: a machine that nobody closes, and vCPU threads that the interpreter just leaves."""
    done = subprocess.run(
        argv(program, guest), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "up\n", "")


async def test_a_fork_of_the_program_neither_sees_guest_memory_nor_keeps_the_machine(
    machine_of,
) -> None:
    """Row 99."""
    guest = saying("up\n")
    guest.code(b"\xeb\xfe")
    async with machine_of(guest) as machine:
        while machine.console_tail != ("up",):  # noqa: ASYNC110 - the guest's memory is the event
            await trio.sleep(0.001)
        memory = machine._running._engine._memory
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            memory.read(0x20_0000, 1)
            os._exit(0)
        _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGSEGV


@pytest.mark.slow
async def test_a_thousand_machines_from_start_to_stop_leave_nothing_behind(machine_of) -> None:
    """Row 100."""
    guest = saying("up\n")
    guest.code(b"\xeb\xfe")
    kernel = machine_of(guest)  # written once

    async def cycle() -> None:
        async with Machine(kernel.config, plugins=kernel._plugins) as machine:
            assert (await machine.stop()).reason is OutcomeReason.STOPPED

    for _ in range(50):
        await cycle()
    with nothing_grows():
        for _ in range(1000):
            await cycle()
    assert threading.active_count() <= 4
