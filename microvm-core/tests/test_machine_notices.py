"""What a machine tells its provisioners and its guest: pauses, sleeps of the host, the end."""

import functools
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from microvm import BootSource, Capability, Machine, MachineConfig, OutcomeReason
from microvm.abc import Guest
from microvm.errors import ConfigError, GuestError, GuestGone
from microvm.host_clocks import ClockJump
from microvm.outcome import MachineOutcome
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.host_clocks import SimulatedClocks
from microvm.testing.platform import (
    ScriptedBackend,
    ScriptedLink,
    ScriptedMachine,
    ScriptedPlatform,
    ScriptedProvisioner,
    runs_until_killed,
)
from microvm.testing.plugins import plugin_manager


def in_no_time(test: Any) -> Any:
    """Run a test whose waits end as soon as nothing else happens."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        async def body() -> None:
            await test(**fixtures)

        trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0.01))

    return run


class TellingLink(ScriptedLink):
    """Keeps what it was told, and does what a test wants it to do then."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.jumps: list[ClockJump] = []
        self.news = trio.Event()
        self.fails = False
        self.hangs = False

    async def _hear(self, what: str) -> None:
        self.told.append(what)
        self.news.set()
        if self.fails:
            raise RuntimeError("a provisioner's mistake")
        if self.hangs:
            await trio.sleep_forever()

    async def pausing(self) -> None:
        await self._hear("pausing")

    async def clock_changed(self, jump: ClockJump) -> None:
        self.jumps.append(jump)
        await self._hear("clock changed")


class Rig:
    """A machine whose backend, guest and clocks are scripts."""

    def __init__(self, tmp_path: Path, *, script: Any = runs_until_killed, **backend: Any) -> None:
        self.link = TellingLink()
        self.other = TellingLink()
        self.clocks = SimulatedClocks()
        self.platform = ScriptedPlatform(script)
        config = MachineConfig(
            boot=BootSource(kernel=tiny_kernel(tmp_path / "kernel")),
            backend="scripted",
            provisioners=("agent", "other"),
        )
        plugins = plugin_manager(
            ScriptedBackend(platform=self.platform, **backend).factory(),
            ScriptedProvisioner(link=self.link).factory(),
            ScriptedProvisioner(name="other", link=self.other).factory(),
        )
        self.machine = Machine(config, plugins=plugins, clocks=self.clocks)

    async def ready(self, guest: Guest | None = None) -> None:
        self.link.become(guest)
        self.other.become(None)
        await trio.testing.wait_all_tasks_blocked()

    @property
    def running(self) -> ScriptedMachine:
        return self.platform.machines[0]


class AskedGuest(Guest):
    """Does as a test says when it is asked to end itself."""

    def __init__(self, on_shutdown: Any) -> None:
        self.on_shutdown = on_shutdown

    async def shutdown(self) -> None:
        await self.on_shutdown()

    async def run(self, argv: Any, **options: Any) -> Any:
        raise NotImplementedError

    def spawn(self, argv: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def ping(self) -> float:
        raise NotImplementedError

    async def status(self) -> Any:
        raise NotImplementedError


# --- pauses and sleeps -----------------------------------------------------------------------


async def test_every_provisioner_is_told_of_a_pause_and_of_its_end(tmp_path):
    rig = Rig(tmp_path)
    async with rig.machine as machine:
        await rig.ready()
        await machine.pause()
        assert (rig.link.told, rig.other.told) == (["pausing"], ["pausing"])
        await machine.pause()
        await machine.resume()
        await machine.resume()
    assert rig.link.told == rig.other.told == ["pausing", "clock changed"]


async def test_every_provisioner_is_told_that_the_host_has_slept(tmp_path):
    rig = Rig(tmp_path)
    async with rig.machine:
        await rig.ready()
        for _ in range(2):
            rig.clocks.sleep(600)
            await rig.link.news.wait()
            await trio.testing.wait_all_tasks_blocked()
            rig.link.news = trio.Event()
        rig.clocks.set_wall(60)
        await rig.link.news.wait()
    assert rig.link.told == rig.other.told == ["clock changed"] * 3
    assert [round(jump.slept_s) for jump in rig.link.jumps] == [600, 600, 0]
    assert [round(jump.set_by_s) for jump in rig.link.jumps] == [0, 0, 60]
    assert rig.link.jumps[2].slept_s == 0, "nothing has stood"


async def test_a_guest_that_is_paused_hears_of_the_sleep_when_it_goes_on(tmp_path):
    rig = Rig(tmp_path)
    async with rig.machine as machine:
        await rig.ready()
        await machine.pause()
        rig.clocks.sleep(600)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.link.told == ["pausing"]
        await machine.resume()
        assert rig.link.told == ["pausing", "clock changed"]
    assert rig.link.jumps[0].slept_s == pytest.approx(600, abs=30)


async def test_a_pause_is_told_with_its_length_and_with_a_clock_that_was_set_meanwhile(tmp_path):
    rig = Rig(tmp_path)
    async with rig.machine as machine:
        await rig.ready()
        for set_by in (0, -3600):
            await machine.pause()
            await trio.sleep(0.1)
            rig.clocks.set_wall(set_by)
            await trio.testing.wait_all_tasks_blocked()
            await machine.resume()
    assert all(0.1 <= jump.slept_s < 30 for jump in rig.link.jumps)
    assert [round(jump.set_by_s) for jump in rig.link.jumps] == [0, -3600]


async def test_a_provisioner_that_fails_keeps_nobody_else_from_hearing(tmp_path, caplog):
    rig = Rig(tmp_path)
    rig.link.fails = True
    async with rig.machine as machine:
        await rig.ready()
        await machine.pause()
        await machine.resume()
        rig.clocks.sleep(5)
        await rig.other.news.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert machine.outcome is None
    assert rig.other.told == ["pausing", "clock changed", "clock changed"]
    assert "a provisioner's mistake" in caplog.text


@in_no_time
async def test_one_that_takes_its_time_holds_up_a_pause_for_a_moment_only(tmp_path):
    rig = Rig(tmp_path)
    rig.link.hangs = True
    async with rig.machine as machine:
        await rig.ready()
        begin = trio.current_time()
        await machine.pause()
        await machine.resume()
        assert trio.current_time() - begin == pytest.approx(2.0)
        assert not rig.running.paused
        for _ in range(2):
            rig.clocks.sleep(5)
            await trio.sleep(11)
    assert rig.link.told[2:] == rig.other.told[2:] == ["clock changed"] * 2


async def test_a_machine_without_provisioners_watches_no_clock(tmp_path):
    class Broken(SimulatedClocks):
        def read(self) -> Any:
            raise AssertionError

    machine = Machine(
        MachineConfig(
            boot=BootSource(kernel=tiny_kernel(tmp_path / "kernel")), vsock=None, provisioners=()
        ),
        plugins=plugin_manager(ScriptedBackend().factory()),
        clocks=Broken(),
    )
    async with machine:
        await trio.testing.wait_all_tasks_blocked()


# --- the end, in stages ------------------------------------------------------------------------

ENDED = MachineOutcome(reason=OutcomeReason.RESET, detail="It was reset.")


async def ends_when_pressed(machine: ScriptedMachine) -> MachineOutcome:
    await machine.power_button.wait()
    return ENDED


WITH_BUTTON = {"capabilities": ScriptedBackend().capabilities | {Capability.POWER_BUTTON}}


@in_no_time
async def test_the_agent_is_asked_first_and_that_is_enough(tmp_path):
    rig = Rig(tmp_path, **WITH_BUTTON)

    async def agree() -> None:
        rig.running.end(ENDED)

    async with rig.machine as machine:
        await rig.ready(AskedGuest(agree))
        outcome = await machine.stop()
        assert not rig.running.power_button.is_set()
    assert outcome.reason is OutcomeReason.POWERED_OFF


@pytest.mark.parametrize("way", ["hangs", "is gone", "agrees and lives"])
@in_no_time
async def test_the_power_button_is_next_when_the_agent_is_no_help(tmp_path, way):
    async def no_help() -> None:
        if way == "hangs":
            await trio.sleep_forever()
        if way == "is gone":
            raise GuestGone("The connection to the guest's agent broke.")

    rig = Rig(tmp_path, script=ends_when_pressed, **WITH_BUTTON)
    async with rig.machine as machine:
        await rig.ready(AskedGuest(no_help))
        outcome = await machine.stop()
    assert outcome.reason is OutcomeReason.POWERED_OFF


@in_no_time
async def test_the_button_ends_a_guest_without_an_agent(tmp_path):
    rig = Rig(tmp_path, script=ends_when_pressed, **WITH_BUTTON)
    async with rig.machine as machine:
        outcome = await machine.stop()
    assert outcome.reason is OutcomeReason.POWERED_OFF


@in_no_time
async def test_a_guest_that_heeds_nothing_is_ended(tmp_path):
    rig = Rig(tmp_path, **WITH_BUTTON)
    async with rig.machine as machine:
        await rig.ready(AskedGuest(trio.sleep_forever))
        begin = trio.current_time()
        outcome = await machine.stop()
        assert trio.current_time() - begin == pytest.approx(3 + 5)
        assert rig.running.power_button.is_set()
    assert outcome.reason is OutcomeReason.STOPPED


@in_no_time
async def test_a_button_that_can_not_be_pressed_is_not_waited_for_as_a_guest_is(tmp_path):
    """A worker process that does not listen."""

    class Jammed(ScriptedMachine):
        async def press_power_button(self) -> None:
            await trio.sleep_forever()

    rig = Rig(tmp_path, **WITH_BUTTON)
    rig.platform.machine_class = Jammed
    async with rig.machine as machine:
        begin = trio.current_time()
        outcome = await machine.stop()
        assert trio.current_time() - begin == pytest.approx(0.5)
    assert outcome.reason is OutcomeReason.STOPPED


@in_no_time
async def test_nobody_presses_a_button_that_a_backend_does_not_declare(tmp_path):
    rig = Rig(tmp_path)
    async with rig.machine as machine:
        await rig.ready(AskedGuest(trio.sleep_forever))
        await machine.stop()
        assert not rig.running.power_button.is_set()


@in_no_time
async def test_less_patience_is_a_cancel_scope_and_leaving_the_block(tmp_path):
    rig = Rig(tmp_path, **WITH_BUTTON)
    async with rig.machine as machine:
        await rig.ready(AskedGuest(trio.sleep_forever))
        with trio.move_on_after(0.5) as scope:
            await machine.stop()
        assert scope.cancelled_caught
        assert machine.outcome is None
    assert machine.outcome is not None


# --- an agent that can less --------------------------------------------------------------------


async def test_what_a_guests_agent_can_not_do_is_told_with_a_way_out(tmp_path):
    rig = Rig(tmp_path)
    async with rig.machine as machine:
        await rig.ready(AskedGuest(trio.sleep_forever))
        with pytest.raises(ConfigError, match="can't handle files"):
            await machine.copy_in(tmp_path, "/x")
        for nothing in (
            machine.spawn_detached(["x"]),
            machine.jobs(),
            machine.job(1),
        ):
            with pytest.raises(ConfigError, match="can't detach commands"):
                await nothing


async def test_files_of_a_guest_that_goes_are_told_how_it_went(tmp_path):
    class GoneFiles:
        async def stat(self, path: str, *, follow: bool = True) -> Any:
            raise GuestGone("The guest's agent ended the connection.")

    class FilesGuest(AskedGuest):
        @property
        def files(self) -> Any:
            return GoneFiles()

    rig = Rig(tmp_path)
    async with rig.machine as machine:
        await rig.ready(FilesGuest(trio.sleep_forever))
        rig.running.end(MachineOutcome(reason=OutcomeReason.PANIC, detail="Its kernel panicked."))
        with pytest.raises(GuestError, match=r"ended the connection\. Its kernel panicked"):
            await machine.files.stat("/")
