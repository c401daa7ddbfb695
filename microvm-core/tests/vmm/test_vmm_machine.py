"""Machines on a hypervisor's vCPUs: their life and their ends, with guests that are scripts."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from microvm import (
    BackendError,
    BootSource,
    Capability,
    ConfigError,
    ConsoleConfig,
    DeviceConfig,
    Machine,
    MachineConfig,
    OutcomeReason,
)
from microvm.abc import ProbeReport, TerminalDevice
from microvm.arch.x86_64 import layout
from microvm.errors import GuestGone, HypervisorCallError
from microvm.exits import (
    FailEntry,
    InternalError,
    MmioRead,
    MmioWrite,
    PioRead,
    PioWrite,
    Shutdown,
    SystemEvent,
    UnknownExit,
)
from microvm.plugins import BackendFactory, DeviceFactory
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.census import Census
from microvm.testing.hypervisor import FakeHypervisor, Spin
from microvm.testing.mmio_bench import UpperDevice
from microvm.testing.plugins import plugin_manager

CAPABILITIES = frozenset(
    {
        Capability.OWN_KERNEL,
        Capability.VIRTIO_DEVICES,
        Capability.PAUSE,
        Capability.CONSOLE,
        Capability.EXIT_COUNTS,
    }
)
WITHIN_S = 5
UPPER = DeviceConfig(name="upper")
I8042_RESET = PioWrite(0x64, 1, b"\xfe")
S5 = layout.ACPI_S5_SLP_TYP << 2 | 0x20

GuestScript = Callable[..., object]


def printed(text: str) -> list[PioWrite]:
    return [PioWrite(layout.COM1, 1, bytes((byte,))) for byte in text.encode()]


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return tiny_kernel(tmp_path / "kernel")


@pytest.fixture
def machine_on(kernel: Path):
    """A machine on a hypervisor of scripts, one a vCPU."""

    def build(*scripts: GuestScript, hypervisor: FakeHypervisor | None = None, **config):
        hypervisor = hypervisor or FakeHypervisor(*scripts)
        upper = UpperDevice()

        def devices(options):
            return upper

        manager = plugin_manager(
            BackendFactory(
                name="scripts",
                summary="vCPUs of scripts",
                capabilities=CAPABILITIES,
                probe=lambda options: ProbeReport(backend="scripts", usable=True, reason="It is."),
                create=lambda options: hypervisor,
            ),
            DeviceFactory(name="upper", summary="capitals", virtio_id=42, create=devices),
        )
        given = {
            "backend": "scripts",
            "boot": BootSource(kernel=kernel),
            "vsock": None,
            "provisioners": (),
            "vcpu_count": max(1, len(scripts)),
            **config,
        }
        machine = Machine(MachineConfig(**given), plugins=manager)
        machine.hypervisor = hypervisor
        machine.upper = upper
        return machine

    return build


@pytest.fixture
def leaves_nothing():
    before = Census.take()
    yield
    assert Census.take() == before


def guest(*steps) -> GuestScript:
    def script(vcpu):
        for step in steps:  # noqa: UP028 - `yield from` would send the answers to a tuple
            yield step

    return script


async def ending(machine: Machine):
    with trio.fail_after(WITHIN_S):
        async with machine:
            return await machine.wait()


ENDS = {
    "the keyboard controller": ([I8042_RESET], OutcomeReason.RESET),
    "the chipset's reset": ([PioWrite(0xCF9, 1, b"\x06")], OutcomeReason.RESET),
    "ACPI's reset": ([PioWrite(layout.ACPI_PM + 2, 1, b"\x01")], OutcomeReason.RESET),
    "ACPI's S5": ([PioWrite(layout.ACPI_PM, 1, bytes((S5,)))], OutcomeReason.POWERED_OFF),
    "the hypervisor's shutdown": ([SystemEvent("shutdown")], OutcomeReason.POWERED_OFF),
    "the hypervisor's reset": ([SystemEvent("reset")], OutcomeReason.RESET),
    "a triple fault": ([Shutdown()], OutcomeReason.TRIPLE_FAULT),
    "an internal error": ([InternalError(1, "emulation failed")], OutcomeReason.INTERNAL_ERROR),
    "a refused entry": ([FailEntry(0x80000021)], OutcomeReason.INTERNAL_ERROR),
    "an unknown exit": ([UnknownExit(77)], OutcomeReason.INTERNAL_ERROR),
    "halted for good": ([], OutcomeReason.HALTED),
    "halted as the kernel said": (printed("reboot: System halted\n"), OutcomeReason.POWERED_OFF),
    "a panic that resets": (
        [*printed("Kernel panic - not syncing: why not\n"), I8042_RESET],
        OutcomeReason.PANIC,
    ),
    "a panic that hangs": (
        [
            *printed("Kernel panic - not syncing: why not\n"),
            *printed("---[ end Kernel panic - not syncing: why not ]---\n"),
            Spin(),
        ],
        OutcomeReason.PANIC,
    ),
}


@pytest.mark.parametrize(("steps", "reason"), ENDS.values(), ids=ENDS)
async def test_each_end_is_told_apart(machine_on, leaves_nothing, steps, reason) -> None:
    outcome = await ending(machine_on(guest(*steps)))
    assert outcome.reason is reason, outcome.detail


async def test_a_panics_words_and_the_last_lines_are_in_the_outcome(machine_on) -> None:
    outcome = await ending(machine_on(guest(*ENDS["a panic that resets"][0])))
    assert outcome.detail == "The guest's kernel panicked: Kernel panic - not syncing: why not"
    assert outcome.console_tail == ("Kernel panic - not syncing: why not",)


@pytest.mark.parametrize("steps", [[Shutdown()], [InternalError(1, "emulation failed")]])
async def test_a_cpu_that_can_not_go_on_leaves_registers_and_code(machine_on, steps) -> None:
    outcome = await ending(machine_on(guest(*steps)))
    assert outcome.cpu_state[0] == "vCPU 0:"
    assert any("rip=" in line for line in outcome.cpu_state)
    assert outcome.cpu_state[-1] == "code: f4"


async def test_a_guest_that_spins_is_stopped(machine_on, leaves_nothing) -> None:
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin())) as machine:
            outcome = await machine.stop()
    assert outcome.reason is OutcomeReason.STOPPED


async def test_cancelling_the_scope_ends_every_vcpu(machine_on, leaves_nothing) -> None:
    machine = machine_on(*[guest(Spin())] * 4)
    with trio.move_on_after(0.05):
        async with machine:
            await trio.sleep_forever()
    assert machine.outcome.reason is OutcomeReason.STOPPED


async def test_every_end_of_one_vcpu_ends_the_others(machine_on, leaves_nothing) -> None:
    outcome = await ending(machine_on(guest(Spin()), guest(Shutdown()), guest(Spin())))
    assert outcome.reason is OutcomeReason.TRIPLE_FAULT
    assert outcome.cpu_state[0] == "vCPU 1:"


@pytest.mark.parametrize("dumb", [0, 1])
async def test_a_vcpu_that_can_not_be_kicked_at_first_is_stopped_all_the_same(
    machine_on, leaves_nothing, dumb
) -> None:
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin()), guest(Spin())) as machine:
            vcpus = machine.hypervisor.vms[0].vcpus
            kick, tries = vcpus[dumb].kick, []

            def no_signal_left() -> None:
                tries.append(None)
                if len(tries) < 3:
                    raise HypervisorCallError("pthread_kill", 11)
                kick()

            vcpus[dumb].kick = no_signal_left
            assert (await machine.stop()).reason is OutcomeReason.STOPPED
    while "microvm insists" in [thread.name for thread in threading.enumerate()]:  # noqa: ASYNC110
        await trio.sleep(0.001)


async def test_vcpus_that_were_never_started_do_not_keep_a_halted_machine(machine_on) -> None:
    outcome = await ending(machine_on(guest(), vcpu_count=3))
    assert outcome.reason is OutcomeReason.HALTED


async def test_a_failing_call_on_the_exit_path_is_a_crash_with_the_calls_name(machine_on) -> None:
    def script(vcpu):
        yield PioWrite(0x80, 1, b"\0")
        raise HypervisorCallError("KVM_RUN", 14)

    outcome = await ending(machine_on(script, guest(Spin())))
    assert outcome.reason is OutcomeReason.CRASHED
    assert "KVM_RUN failed: Bad address" in outcome.detail
    assert outcome.cpu_state[0] == "vCPU 0:"


async def test_a_bug_in_a_bus_device_ends_the_machine_in_words(machine_on, caplog) -> None:
    machine = machine_on(guest(MmioRead(layout.virtio_mmio_base(0) + 0x100, 4)), devices=[UPPER])

    def broken(offset, length):
        raise ZeroDivisionError("of course")

    machine.upper.read_config = broken
    outcome = await ending(machine)
    assert outcome.reason is OutcomeReason.CRASHED
    assert "ZeroDivisionError: of course" in outcome.detail


async def test_reads_are_answered_by_width_and_absent_places_read_all_ones(machine_on) -> None:
    seen = []

    def script(vcpu):
        seen.append((yield MmioRead(layout.virtio_mmio_base(0), 4)))
        seen.append((yield MmioRead(0xC800_0000, 8)))
        seen.append((yield PioRead(0x1234, 2)))
        seen.append((yield PioRead(0x3FD, 1, 3)))
        yield MmioWrite(0xC800_0000, b"\1\2\3\4")
        yield I8042_RESET

    machine = machine_on(script, devices=[UPPER])
    await ending(machine)
    assert seen == [b"virt", b"\xff" * 8, b"\xff" * 2, b"\x60" * 3]


async def test_what_a_guest_writes_to_the_boot_timer_is_a_phase_of_its_boot(machine_on) -> None:
    marks = [MmioWrite(layout.BOOT_TIMER, b"\x07"), MmioWrite(layout.BOOT_TIMER, b"\x7b")]
    machine = machine_on(guest(*marks, I8042_RESET))
    await ending(machine)
    phases = list(machine.timing)
    assert phases.index("boot_timer_7") + 1 == phases.index("boot_timer_123")
    assert phases.index("vcpus") < phases.index("boot_timer_7")
    assert all(ms >= 0 for ms in machine.timing.values())


async def test_exits_are_counted_by_kind_and_address(machine_on) -> None:
    machine = machine_on(guest(*[PioRead(0x71, 1)] * 3, PioWrite(0x80, 1, b"\0"), I8042_RESET))
    await ending(machine)
    assert dict(machine.exit_counts) == {
        "pio-read 0x71": 3,
        "pio-write 0x80": 1,
        "pio-write 0x64": 1,
    }


async def test_a_guest_that_touches_every_address_does_not_fill_the_host(machine_on) -> None:
    def script(vcpu):
        for address in range(0xC000_0000, 0xC000_0000 + 4 * 5000, 4):
            yield MmioRead(address, 4)
        yield I8042_RESET

    machine = machine_on(script)
    await ending(machine)
    assert sum(machine.exit_counts.values()) == 5001
    assert len(machine.exit_counts) <= 1024
    assert machine.exit_counts["elsewhere"] == 5001 - 1023


async def test_the_boot_vcpu_starts_as_the_protocol_says_and_the_others_as_reset(
    machine_on,
) -> None:
    machine = machine_on(guest(Spin()), guest(Spin()))
    seen = {}

    async with machine:
        (vm,) = machine.hypervisor.vms

        def look(vcpu):
            seen[vcpu.index] = vcpu.registers()["rip"]

        for thread in machine._running._engine.threads:
            thread.command(look)
        while len(seen) < 2:  # noqa: ASYNC110 - written by vCPU threads
            await trio.sleep(0.001)
    assert seen == {0: 0x100_0200, 1: 0}
    assert [region.start for region in vm.regions] == []


async def test_each_vcpu_lives_on_a_thread_of_its_own(machine_on) -> None:
    async with machine_on(guest(Spin()), guest(Spin())) as machine:
        (vm,) = machine.hypervisor.vms
        threads = {vcpu.thread for vcpu in vm.vcpus.values()}
        assert len(threads) == 2
        assert threading.get_ident() not in threads


async def test_memory_beyond_3_gib_goes_behind_the_hole(machine_on) -> None:
    async with machine_on(guest(Spin()), mem_size_mib=3 * 1024 + 64) as machine:
        (vm,) = machine.hypervisor.vms
        spans = [(region.start, region.end) for region in vm.regions]
    assert spans == [(0, 0xC000_0000), (0x1_0000_0000, 0x1_0400_0000)]


def test_everything_that_the_board_can_not_hold_is_told_at_once(machine_on) -> None:
    async def start():
        async with machine_on(
            guest(),
            vcpu_count=200,
            mem_size_mib=1 << 20,
            devices=[UPPER] * 19,
        ):
            pass

    with pytest.raises(ConfigError) as caught:
        trio.run(start)
    assert {problem.where for problem in caught.value.problems} == {
        "devices",
        "vcpu_count",
        "mem_size_mib",
    }


async def test_eighteen_devices_have_an_address_and_an_interrupt_each(machine_on) -> None:
    async with machine_on(guest(Spin()), devices=[UPPER] * 18) as machine:
        (vm,) = machine.hypervisor.vms
        assert len(vm.bells) == 18
        assert set(vm.lines) == {4, *layout.VIRTIO_GSIS}


@pytest.mark.parametrize("call", ["create_vm", "map_memory", "irq_line", "doorbell", "create_vcpu"])
async def test_a_call_that_fails_at_the_start_is_the_error_and_leaves_nothing(
    machine_on, leaves_nothing, call
) -> None:
    machine = machine_on(guest(Spin()), guest(Spin()), devices=[UPPER])
    machine.hypervisor.failures[call] = HypervisorCallError(call, 12)
    with pytest.raises(HypervisorCallError, match=f"{call} failed"):
        async with machine:
            pass
    assert all(vm.closed for vm in machine.hypervisor.vms)


async def test_no_vcpu_runs_before_all_are_there(machine_on, leaves_nothing) -> None:
    started = []

    def script(vcpu):
        started.append(vcpu.index)
        yield Spin()

    class SecondFails(FakeHypervisor):
        def create_vm(self, *, vcpu_count):
            vm = super().create_vm(vcpu_count=vcpu_count)
            create = vm.create_vcpu

            def create_vcpu(index):
                if index == 1:
                    time.sleep(0.05)
                    raise HypervisorCallError("create_vcpu", 12)
                return create(index)

            vm.create_vcpu = create_vcpu
            return vm

    with pytest.raises(HypervisorCallError, match="create_vcpu failed"):
        async with machine_on(script, script, hypervisor=SecondFails(script, script)):
            pass
    assert started == []


async def test_a_thread_that_the_host_does_not_give_is_an_error_that_says_so(
    machine_on, leaves_nothing, monkeypatch
) -> None:
    real, started = threading.Thread.start, []

    def start(thread):
        if thread.name.startswith("microvm vCPU"):
            started.append(thread)
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(BackendError, match="no thread for vCPU 1"):
        async with machine_on(guest(Spin()), guest(Spin())):
            pass


async def test_a_pause_holds_every_vcpu_and_a_resume_tells_their_clocks(machine_on) -> None:
    counts = [0, 0]

    def counting(vcpu):
        while True:
            counts[vcpu.index] += 1
            yield PioWrite(0x80, 1, b"\0")

    async with machine_on(counting, counting) as machine:
        await machine.pause()
        before = list(counts)
        await trio.sleep(0.02)
        assert counts == before
        await machine.resume()
        with trio.fail_after(WITHIN_S):
            while not (counts[0] > before[0] and counts[1] > before[1]):  # noqa: ASYNC110
                await trio.sleep(0.001)
        (vm,) = machine.hypervisor.vms
        assert [vcpu.resumes for vcpu in vm.vcpus.values()] == [1, 1]


class CountingGuest:
    """Sets up its device, and counts from then on."""

    def __init__(self) -> None:
        self.count = 0

    def script(self, vcpu):
        base = layout.virtio_mmio_base(0)
        for offset, value in (
            (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11),
            (0x30, 0), (0x38, 16), (0x80, 0x20_0000), (0x90, 0x20_1000), (0xA0, 0x20_2000),
            (0x44, 1), (0x70, 15),
        ):  # fmt: skip
            yield MmioWrite(base + offset, value.to_bytes(4, "little"))
        while True:
            self.count += 1
            yield PioWrite(0x80, 1, b"\0")

    async def goes_on(self) -> bool:
        await trio.sleep(0.01)
        before = self.count
        await trio.sleep(0.02)
        return self.count > before


async def test_pause_and_resume_at_once_leave_cpus_and_devices_in_one_state(machine_on) -> None:
    counting = CountingGuest()
    async with machine_on(counting.script, devices=[UPPER]) as machine:
        await machine.upper.until("run")
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.pause)
                nursery.start_soon(machine.resume)
            assert await counting.goes_on() == machine.upper.running


async def test_a_pause_that_is_cancelled_is_none(machine_on) -> None:
    counting = CountingGuest()
    async with machine_on(counting.script, devices=[UPPER]) as machine:
        await machine.upper.until("run")
        with trio.CancelScope() as scope:
            scope.cancel()
            await machine.pause()
        assert scope.cancelled_caught
        assert await counting.goes_on()
        assert machine.upper.running


async def test_a_pause_that_is_cancelled_while_devices_come_to_rest_can_be_resumed(
    machine_on,
) -> None:
    counting = CountingGuest()
    async with machine_on(counting.script, devices=[UPPER]) as machine:
        await machine.upper.until("run")
        machine.upper.end_takes_s = 0.1
        with trio.move_on_after(0.05):
            await machine.pause()
        assert not await counting.goes_on()
        await machine.resume()
        await machine.upper.until("run", 2)
        assert await counting.goes_on()


async def test_a_paused_machine_is_stopped_like_any_other(machine_on, leaves_nothing) -> None:
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin())) as machine:
            await machine.pause()
            assert (await machine.stop()).reason is OutcomeReason.STOPPED


async def test_pausing_a_machine_that_has_ended_is_an_error(machine_on) -> None:
    async with machine_on(guest(I8042_RESET)) as machine:
        await machine.wait()
        with pytest.raises(GuestGone):
            await machine.pause()
        with pytest.raises(GuestGone):
            await machine.resume()


async def test_a_device_is_served_over_the_bus_and_interrupts_by_its_line(machine_on) -> None:
    base = layout.virtio_mmio_base(0)

    def script(vcpu):
        for offset, value in (
            (0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11),
            (0x30, 0), (0x38, 16), (0x80, 0x20_0000), (0x90, 0x20_1000), (0xA0, 0x20_2000),
            (0x44, 1), (0x70, 15),
        ):  # fmt: skip
            yield MmioWrite(base + offset, value.to_bytes(4, "little"))
        status = yield MmioRead(base + 0x70, 4)
        assert status == b"\x0f\0\0\0"
        yield Spin()

    machine = machine_on(script, devices=[UPPER])
    with trio.fail_after(WITHIN_S):
        async with machine:
            await machine.upper.until("run")
    assert machine.upper.diary == ["reset", "run", "end", "reset"]


async def test_a_devices_own_bug_ends_the_machine_and_comes_out_as_it_is(
    machine_on, leaves_nothing
) -> None:
    base = layout.virtio_mmio_base(0)
    script = guest(
        *[
            MmioWrite(base + offset, value.to_bytes(4, "little"))
            for offset, value in (
                (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15),
            )
        ],
        Spin(),
    )  # fmt: skip
    machine = machine_on(script, devices=[UPPER])

    async def broken(activation):
        raise ZeroDivisionError

    machine.upper.run = broken
    with trio.fail_after(WITHIN_S), pytest.raises(ZeroDivisionError):
        async with machine:
            await trio.sleep_forever()


@asynccontextmanager
async def prelaunched(machine):
    from microvm._assembly import assemble
    from microvm.timeline import BootTimeline

    assembly = assemble(machine.config, machine._plugins, BootTimeline())
    with assembly.platform.prelaunch(assembly.plan):
        yield assembly


async def test_a_guest_launched_before_the_loop_is_taken_over(machine_on, leaves_nothing) -> None:
    first = machine_on(guest(*printed("hello\n"), I8042_RESET))
    async with prelaunched(first) as assembly:
        machine = Machine(first.config, plugins=first._plugins, assembly=assembly)
        outcome = await ending(machine)
    assert outcome.reason is OutcomeReason.RESET
    assert outcome.console_tail == ("hello",)


async def test_a_launch_that_no_machine_takes_over_is_ended(machine_on, leaves_nothing) -> None:
    base = layout.virtio_mmio_base(0)
    ready = [
        MmioWrite(base + offset, value.to_bytes(4, "little"))
        for offset, value in (
            (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15), (0x70, 0)
        )
    ]  # fmt: skip
    begun = threading.Event()

    def script(vcpu):
        yield from ready[:-1]
        begun.set()
        yield ready[-1]  # waits for a loop that never comes
        yield Spin()

    machine = machine_on(script, devices=[UPPER])
    with trio.fail_after(WITHIN_S):
        async with prelaunched(machine):
            begun.wait(WITHIN_S)
            await trio.sleep(0.05)
    assert machine.hypervisor.vms[0].closed


async def test_twenty_machines_at_once_end_on_their_own(machine_on, leaves_nothing) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            machine = machine_on(guest(*printed("hello\n"), I8042_RESET))
            nursery.start_soon(partial(ending, machine))


def beginning_and_resetting_its_device(vcpu):
    """A guest that does nothing else, for ever, and not always by the rules."""
    base = layout.virtio_mmio_base(0)
    chance = random.Random(vcpu.index)
    steps = (
        (0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11),
        (0x30, 0), (0x38, 16), (0x80, 0x20_0000), (0x90, 0x20_1000), (0xA0, 0x20_2000),
        (0x44, 1), (0x70, 15),
    )  # fmt: skip
    while True:
        wild = [(chance.choice((0x44, 0x50, 0x70)), chance.choice((0, 1, 15)))]
        for offset, value in (*steps, *wild * chance.randrange(3)):
            yield MmioWrite(base + offset, value.to_bytes(4, "little"))


@pytest.mark.parametrize("seed", range(4))
async def test_a_guest_that_resets_its_device_all_the_time_is_paused_and_ended_at_any_moment(
    machine_on, leaves_nothing, seed
) -> None:
    chance = random.Random(seed)

    async def live(machine: Machine) -> None:
        async with machine:
            for _ in range(chance.randrange(4)):
                with trio.move_on_after(chance.random() * 0.003):
                    await machine.pause()
                await machine.resume()
            await trio.sleep_forever()

    for _ in range(20):
        machine = machine_on(*[beginning_and_resetting_its_device] * 2, devices=[UPPER])
        with trio.fail_after(WITHIN_S), trio.move_on_after(chance.random() * 0.02):
            await live(machine)


# --- the console and what is counted -----------------------------------------------------------


def echoing(vcpu):
    """Prints what it reads on its serial port, until that is a line."""
    yield PioWrite(layout.COM1 + 2, 1, b"\x01")  # clears the FIFO, hence before the prompt
    yield from printed("> ")
    while True:
        status = yield PioRead(layout.COM1 + 5, 1)
        if status[0] & 1:
            byte = yield PioRead(layout.COM1, 1)
            yield PioWrite(layout.COM1, 1, byte)
            if byte == b"\n":
                yield I8042_RESET


async def test_what_is_typed_is_read_at_the_serial_port(machine_on, leaves_nothing) -> None:
    line = b"a line that is longer than the port's FIFO holds at once\n"
    with trio.fail_after(WITHIN_S):
        async with machine_on(echoing) as machine, await machine.open_console() as console:
            got = b""
            while got != b"> ":
                got += await console.receive_some()
            await console.send_all(line)
            async for chunk in console:
                got += chunk
            assert (await machine.wait()).reason is OutcomeReason.RESET
            counters = machine.metrics.console
    assert got == b"> " + line
    assert counters == {
        "printed_bytes": len(got),
        "typed_bytes": len(line),
        "dropped_bytes": 0,
    }


async def test_a_flood_past_a_reader_that_has_stopped_holds_up_no_vcpu(machine_on) -> None:
    """Row 62: the guest comes to its end, and what the reader missed is counted."""
    block = PioWrite(layout.COM1, 1, b"x" * 65536)

    def floods(vcpu):
        while not (yield PioRead(layout.COM1 + 5, 1))[0] & 1:
            pass
        for _ in range(64):
            yield block
        yield I8042_RESET

    with trio.fail_after(WITHIN_S):
        async with machine_on(floods) as machine, await machine.open_console() as console:
            await console.send_all(b"go")
            assert (await machine.wait()).reason is OutcomeReason.RESET
            counters = machine.metrics.console
    assert counters["printed_bytes"] == 64 * 65536
    assert counters["dropped_bytes"] > 3 * 1024 * 1024


async def test_devices_are_counted_by_name_and_number(machine_on) -> None:
    with trio.fail_after(WITHIN_S):
        async with machine_on(guest(Spin()), devices=[UPPER]) as machine:
            assert machine.metrics.devices == {"upper0": {"notifications": 0, "interrupts": 0}}


class EchoTerminal(UpperDevice, TerminalDevice):
    """A console that prints what is typed, as a guest's driver would have it do."""

    def follow(self, output) -> None:
        self.output = output

    async def send(self, data: bytes) -> None:
        self.output(data)


async def test_a_virtio_console_is_the_machines_beside_the_serial_port(kernel) -> None:
    hypervisor = FakeHypervisor(guest(*printed("early\n"), Spin()))
    manager = plugin_manager(
        BackendFactory(
            name="scripts",
            summary="vCPUs of scripts",
            capabilities=CAPABILITIES,
            probe=lambda options: ProbeReport(backend="scripts", usable=True, reason="It is."),
            create=lambda options: hypervisor,
        ),
        DeviceFactory(
            name="console", summary="one", virtio_id=3, create=lambda options: EchoTerminal()
        ),
    )
    config = MachineConfig(
        backend="scripts",
        boot=BootSource(kernel=kernel),
        vsock=None,
        provisioners=(),
        console=ConsoleConfig(device="virtio"),
    )
    with trio.fail_after(WITHIN_S):
        async with Machine(config, plugins=manager) as machine:
            assert "console=hvc0" in machine._assembly.plan.cmdline.split()
            assert "console=ttyS0" not in machine._assembly.plan.cmdline
            async with await machine.open_console() as console:
                got = b""
                while got != b"early\n":
                    got += await console.receive_some()
                await console.send_all(b"typed")
                while got != b"early\ntyped":
                    got += await console.receive_some()
            assert "console0" in machine.metrics.devices
            assert machine.console_tail == ("early", "typed")
