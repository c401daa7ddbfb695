"""A machine in a worker process behaves as one in this process does."""

import logging
import os
import signal
import time

import attrs
import pytest
import trio
import trio.testing

from microvm import (
    ConfigError,
    ConsoleConfig,
    DeviceConfig,
    GuestGone,
    GuestRefused,
    Machine,
    MachineConfig,
    OutcomeReason,
)
from microvm.errors import BackendCrashed, HypervisorCallError, ImageError
from microvm.testing.census import Census
from microvm.testing.platform import ScriptedBackend
from microvm.testing.plugins import plugin_manager

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ECHO, DIALLED = 7, 9
DATA = bytes(range(256)) * 4096 * 4
each_kind_of_stream = pytest.mark.parametrize("sockets", [False, True], ids=["memory", "sockets"])


async def said(machine: Machine, words: str) -> None:
    """Wait until the guest has printed it."""
    with trio.fail_after(20):
        while not any(words in line for line in machine.console_tail):  # noqa: ASYNC110
            await trio.sleep(0.01)


def worker_of(machine: Machine) -> int:
    (line,) = [line for line in machine.console_tail if line.startswith("pid ")]
    return int(line.split()[1])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def exchange(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send it all, then end-of-file, reading meanwhile; what came back."""
    back = bytearray()

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async for chunk in stream:
            back += chunk
    return bytes(back)


# --- what it is ------------------------------------------------------------------------------


async def test_the_machine_and_its_devices_live_in_another_process(rig):
    async with rig.machine(devices=[rig.diary()]) as machine:
        worker = worker_of(machine)
        assert worker != os.getpid()
        assert (rig.folder / "diary" / "entered").read_text() == str(worker)
        assert not (rig.folder / "diary" / "left").exists()
        assert os.getsid(worker) != os.getsid(0)
    assert (rig.folder / "diary" / "left").read_text() == str(worker)
    assert not is_alive(worker)


async def test_what_a_guest_has_its_worker_drop_is_collected(rig):
    async with rig.machine("litters") as machine:
        await said(machine, "collected")


async def test_the_plan_is_made_here_and_once(rig):
    async with rig.machine(cmdline="quiet") as machine:
        await said(machine, "cmdline rig=1 quiet")
        assert "cmdline rig=1 quiet" in machine.console_tail
        assert "in a worker process" in machine.backend.reason


async def test_the_workers_phases_stand_among_ours_in_order(rig):
    async with rig.machine() as machine:
        phases = list(machine.timing)
    assert phases == ["backend", "plugins", "image", "worker", "spawn"]
    assert all(ms >= 0 for ms in machine.timing.values())


async def test_console_and_counts_are_those_of_this_moment(rig):
    async with rig.machine() as machine:
        await said(machine, "idle")
        first = machine.exit_counts["look"]
        assert machine.exit_counts["look"] == first + 1
    assert machine.exit_counts["look"] > first + 1
    assert "idle" in machine.console_tail


async def test_the_console_is_joined_from_here_both_ways(rig):
    async with rig.machine("echo_typed") as machine, await machine.open_console() as console:
        await console.send_all(b"abc\n")
        got = b""
        with trio.fail_after(5):
            while b"typed abc" not in got:
                got += await console.receive_some()
        assert machine.metrics.console["typed_bytes"] == 4
        assert machine.metrics.console["printed_bytes"] > 10


async def test_a_file_sink_is_written_by_the_callers_process(rig):
    console = ConsoleConfig(output="file", path=rig.folder / "log")
    async with rig.machine("panic", console=console) as machine:
        await machine.wait()
    assert (rig.folder / "log").read_bytes().endswith(b"\x1b[31mno init\n")


async def test_what_the_worker_logs_is_logged_here(rig, caplog):
    caplog.set_level(logging.WARNING, "microvm")
    async with rig.machine("complains"):
        with trio.fail_after(20):
            while len(caplog.records) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "microvm.rig: the guest's driver broke a rule"),
        ("ERROR", "microvm.rig: from a thread"),
    ]


# --- streams ---------------------------------------------------------------------------------


@each_kind_of_stream
async def test_4_mib_go_to_a_guest_port_and_back_with_half_close(rig, sockets):
    async with rig.machine("echo", options={"sockets": sockets}) as machine:
        stream = await machine.connect(ECHO)
        assert isinstance(stream, trio.SocketStream)
        assert await exchange(stream, DATA) == DATA
        await said(machine, "echoed")


async def test_a_port_nobody_listens_on_is_refused(rig):
    async with rig.machine("echo") as machine:
        with pytest.raises(GuestRefused, match="port 8"):
            await machine.connect(8)
        with pytest.raises(ConfigError, match="number from 0"):
            await machine.connect(-1)


async def test_20_streams_at_once_keep_to_themselves(rig):
    async with rig.machine("echo") as machine:

        async def one(number: int) -> None:
            data = bytes([number]) * 100_000
            assert await exchange(await machine.connect(ECHO), data) == data

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)


async def test_a_guests_first_call_finds_who_listened_before_it_ran(rig):
    from microvm._assembly import assemble
    from microvm.timeline import BootTimeline

    config = rig.config("dial")
    assembly = assemble(config, rig.plugins, BootTimeline())
    async with (
        assembly.channels.listen(DIALLED) as listener,
        Machine(config, plugins=rig.plugins, assembly=assembly) as machine,
    ):
        stream = await listener.accept()
        assert await exchange(stream, DATA) == DATA
        await said(machine, "answered")


async def test_a_listener_that_is_closed_frees_its_port_and_refuses_the_guest(rig):
    async with rig.machine("dial_often") as machine:
        await said(machine, "refused")
        for _ in range(3):
            async with machine.listen(DIALLED) as listener:
                with pytest.raises(ConfigError, match="has a listener already"):
                    machine.listen(DIALLED)
                for _ in range(40):  # more than the worker hands over unasked
                    async with await listener.accept() as stream:
                        assert (await stream.receive_some()).isdigit()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        refusals = len(machine.console_tail)
        await said(machine, "refused")
        assert len(machine.console_tail) >= refusals


async def test_an_accept_that_is_cancelled_loses_no_connection(rig):
    async with rig.machine("dial_often") as machine, machine.listen(DIALLED) as listener:
        numbers = []
        while len(numbers) < 20:
            with trio.move_on_after(0.003):
                async with await listener.accept() as stream:
                    with trio.CancelScope(shield=True):
                        numbers.append(int(await stream.receive_some()))
    assert numbers == sorted(numbers)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_streams_outlive_a_pause_and_the_platform_is_told_of_it(rig):
    async with rig.machine() as machine:
        await machine.pause()
        await said(machine, "paused True")
        await machine.resume()
        await said(machine, "paused False")


async def test_a_pause_that_is_cancelled_when_the_worker_has_done_it_is_undone(rig):
    async with rig.machine(options={"linger": True}) as machine:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine._started().pause)
            await said(machine, "paused True")
            nursery.cancel_scope.cancel()
        await said(machine, "paused False")


async def test_the_power_button_is_pressed_in_the_worker(rig):
    async with rig.machine() as machine:
        await machine._started().press_power_button()
        outcome = await machine.wait()
    assert (outcome.reason, outcome.detail) == ("powered-off", "Its button was pressed.")
    assert "pressed" in outcome.console_tail


# --- errors ----------------------------------------------------------------------------------


async def test_an_error_of_the_platforms_comes_out_as_itself(rig):
    with pytest.raises(ImageError, match=r"^It failed\.\nRepair it\.$"):
        async with rig.machine(options={"fail": "ImageError"}):
            raise AssertionError
    with pytest.raises(HypervisorCallError) as caught:
        async with rig.machine(options={"fail": "HypervisorCallError"}):
            raise AssertionError
    assert (caught.value.call, caught.value.errno) == ("KVM_CREATE_VM", 16)
    assert caught.value.remedy == "Wait."


async def test_a_platforms_bug_is_told_with_the_workers_last_words(rig):
    with pytest.raises(BackendCrashed, match=r"exit code 1\. .*RuntimeError: a bug of the plat"):
        async with rig.machine(options={"fail": "RuntimeError"}):
            raise AssertionError


async def test_options_are_checked_before_any_process_is_started(rig):
    with pytest.raises(ConfigError) as caught:
        async with rig.machine(
            options={"colour": 1, "any": object()}, devices=[DeviceConfig(name="diary")]
        ):
            raise AssertionError
    assert {p.where for p in caught.value.problems} == {
        "backend_options.colour",
        "backend_options.any",
        "devices[0].folder",
    }


async def test_a_plugin_given_in_code_can_not_be_found_by_a_worker(rig):
    manager = plugin_manager(ScriptedBackend(name="rig").factory())
    with pytest.raises(ConfigError, match="backend/rig was given in code"):
        async with Machine(rig.config(), plugins=manager):
            raise AssertionError


async def test_a_frozen_program_is_told_that_it_can_have_no_worker(rig, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ConfigError, match=r"isolation: .*frozen"):
        async with rig.machine():
            raise AssertionError


def test_an_isolation_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"isolation: must be one of inline, process, not 'jail'"):
        MachineConfig(isolation="jail")


# --- ends ------------------------------------------------------------------------------------


async def test_the_guests_end_is_told_whole_and_made_safe_to_show(rig):
    async with rig.machine("panic") as machine:
        outcome = await machine.wait()
        assert outcome.reason is OutcomeReason.PANIC
        assert outcome.detail == "It panicked."
        assert outcome.cpu_state == ("vCPU 0:", "rip=0xfff0")
        assert r"Kernel panic - not syncing: \x1b[31mno init" in outcome.console_tail


async def test_stop_is_a_stop(rig):
    async with rig.machine() as machine:
        assert (await machine.stop()).reason is OutcomeReason.STOPPED
        with pytest.raises(GuestRefused):
            await machine.connect(ECHO)
        assert (await machine.stop()).reason is OutcomeReason.STOPPED


async def test_a_killed_worker_is_a_crash_that_everybody_hears_of(rig):
    async with rig.machine("echo") as machine, machine.listen(DIALLED) as listener:
        stream = await machine.connect(ECHO)

        async def accept() -> None:
            with pytest.raises(GuestGone, match="has ended"):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            os.kill(worker_of(machine), signal.SIGKILL)
            outcome = await machine.wait()
        assert outcome.reason is OutcomeReason.CRASHED
        assert outcome.detail == "The worker process was killed by signal SIGKILL."
        with pytest.raises(GuestGone):
            await machine.connect(ECHO)
        with pytest.raises(GuestGone):
            machine.listen(ECHO)
        with pytest.raises(GuestGone):
            await machine.pause()
        assert await stream.receive_some() == b""
        await stream.aclose()


async def test_a_worker_that_falls_is_told_with_its_last_words(rig):
    async with rig.machine("falls") as machine:
        outcome = await machine.wait()
    assert outcome.reason is OutcomeReason.CRASHED
    assert "exit code 3. Its last words: the last thing it said" in outcome.detail


async def test_a_bug_in_the_machine_is_a_crash(rig):
    async with rig.machine("raises") as machine:
        await machine.wait()
    assert machine.outcome.reason in (OutcomeReason.CRASHED, OutcomeReason.STOPPED)


async def test_a_child_of_a_dead_workers_holds_nobody_up(rig):
    async with rig.machine("forks") as machine:
        begin = trio.current_time()
        await machine.stop()
    assert trio.current_time() - begin < 20


@pytest.mark.parametrize("script", ["blocked", "spinning"])
async def test_stop_ends_a_worker_that_does_not_listen(rig, script):
    async with rig.machine(script) as machine:
        begin = time.monotonic()
        assert isinstance(machine.console_tail, tuple)
        assert isinstance(machine.console_tail, tuple)
        assert time.monotonic() - begin < 5
        stopping = time.monotonic()
        assert (await machine.stop()).reason is OutcomeReason.STOPPED
        assert time.monotonic() - stopping < 20


# --- cancellation ----------------------------------------------------------------------------


async def test_cancelling_while_the_worker_comes_up_ends_it(rig):
    for milliseconds in (0, 5, 20, 60, 120, 200):
        with trio.move_on_after(milliseconds / 1000):
            async with rig.machine(options={"hang": True}, devices=[rig.diary()]):
                raise AssertionError
        assert Census.take().children == ()


async def test_cancelling_a_machine_that_runs_leaves_its_devices_tidily(rig):
    with trio.CancelScope() as scope:
        async with rig.machine(devices=[rig.diary()]) as machine:
            worker = worker_of(machine)
            scope.cancel()
            await trio.sleep_forever()
    assert machine.outcome.reason is OutcomeReason.STOPPED
    assert not is_alive(worker)
    assert (rig.folder / "diary" / "left").exists()


async def test_cancelling_a_request_leaves_the_machine_as_it_was(rig):
    async with rig.machine("echo") as machine:
        for _ in range(30):
            with trio.move_on_after(0.0005):
                await (await machine.connect(ECHO)).aclose()
        assert await exchange(await machine.connect(ECHO), b"hello") == b"hello"


async def test_the_bodys_own_error_comes_out_bare(rig):
    with pytest.raises(ZeroDivisionError):
        async with rig.machine():
            raise ZeroDivisionError


async def test_20_machines_at_once_leave_nothing(rig):
    async def one() -> None:
        async with rig.machine("echo") as machine:
            assert await exchange(await machine.connect(ECHO), b"hello") == b"hello"

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)


async def test_a_machine_in_this_process_and_one_in_another_are_told_the_same(rig):
    seen = []
    for isolation in ("inline", "process"):
        async with rig.machine("panic", isolation=isolation, cmdline="quiet") as machine:
            outcome = await machine.wait()
            seen.append(attrs.evolve(outcome, console_tail=()))
    assert seen[0] == seen[1]
