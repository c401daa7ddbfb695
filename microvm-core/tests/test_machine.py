"""`Machine` on a scripted platform: its life, its ends, what it says when things go wrong."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from microvm import (
    BackendUnavailable,
    BootError,
    BootSource,
    ConfigError,
    DeviceConfig,
    GuestGone,
    GuestNotReady,
    Machine,
    MachineConfig,
    OutcomeReason,
)
from microvm.abc import (
    Capability,
    Guest,
    GuestLink,
    GuestProcess,
    RunResult,
    TtySize,
    VirtioDevice,
)
from microvm.errors import BackendError, GuestProtocolError, PluginMissing
from microvm.outcome import MachineOutcome
from microvm.plugins import DeviceFactory
from microvm.testing.boot_files import tiny_kernel
from microvm.testing.platform import (
    ScriptedBackend,
    ScriptedLink,
    ScriptedMachine,
    ScriptedPlatform,
    ScriptedProvisioner,
)
from microvm.testing.plugins import plugin_manager


class EchoGuest(Guest):
    """Answers every command with its own argv; `gone` makes it fail as a dead one would."""

    def __init__(self) -> None:
        self.gone = False
        self.shutdowns = 0
        self.on_shutdown: trio.Event = trio.Event()

    async def run(self, argv: Sequence[str], **options: Any) -> RunResult:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise GuestGone("The connection to the agent broke.")
        return RunResult(
            argv=tuple(argv), exit_code=0, signal=None, stdout=" ".join(argv).encode(), stderr=b""
        )

    @asynccontextmanager
    async def spawn(
        self, argv: Sequence[str], *, tty: TtySize | None = None, **options: Any
    ) -> AsyncIterator[GuestProcess]:
        raise GuestGone("The connection to the agent broke.")
        yield

    async def ping(self) -> float:
        return 0.1

    async def status(self) -> Mapping[str, Any]:
        return {}

    async def shutdown(self) -> None:
        self.shutdowns += 1
        self.on_shutdown.set()


@attrs.define
class Rig:
    """A scripted backend and provisioner, and the machines made of them."""

    kernel: Path
    backend: ScriptedBackend = attrs.field(factory=ScriptedBackend)
    agent: ScriptedProvisioner = attrs.field(factory=ScriptedProvisioner)
    guest: EchoGuest = attrs.field(factory=EchoGuest)
    plugins: dict[str, object] = attrs.field(factory=dict)

    @property
    def platform(self) -> ScriptedPlatform:
        return self.backend.platform

    def machine(self, **fields: Any) -> Machine:
        fields.setdefault("boot", BootSource(kernel=self.kernel))
        manager = plugin_manager(self.backend.factory(), self.agent.factory(), plugins=self.plugins)
        return Machine(MachineConfig(**fields), plugins=manager)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(kernel=tiny_kernel(tmp_path / "kernel"))


async def test_run_waits_for_the_guest(rig: Rig) -> None:
    async with rig.machine() as machine, trio.open_nursery() as nursery:
        results = []

        async def command() -> None:
            results.append(await machine.run(["hello"]))

        nursery.start_soon(command)
        await trio.testing.wait_all_tasks_blocked()
        assert results == []
        rig.agent.link.become(rig.guest)
    assert results[0].stdout == b"hello"
    assert {"backend", "plugins", "image", "spawn", "kernel", "agent"} <= set(machine.timing)


async def test_the_bodys_error_comes_out_bare(rig: Rig) -> None:
    with pytest.raises(KeyError):
        async with rig.machine():
            raise KeyError
    assert rig.platform.live == 0


async def test_cancelling_the_scope_around_it_ends_it(rig: Rig) -> None:
    with trio.CancelScope() as scope:
        async with rig.machine() as machine:
            scope.cancel()
            await machine.wait_ready()
    assert rig.platform.live == 0
    assert machine.outcome is not None
    assert machine.outcome.reason is OutcomeReason.STOPPED


async def test_a_guest_that_never_reports_is_told_within_the_bound(rig: Rig) -> None:
    async def silent(machine: ScriptedMachine) -> MachineOutcome | None:
        machine.say("init: stuck")
        return None

    rig.platform.script = silent
    async with rig.machine(ready_within_s=0.05) as machine:
        with pytest.raises(GuestNotReady, match=r"within 0\.05 s") as caught:
            await machine.wait_ready()
        assert caught.value.console == ("init: stuck",)
        with pytest.raises(GuestNotReady):
            await machine.run(["true"])


async def test_an_agent_that_breaks_its_protocol_is_a_boot_error(rig: Rig) -> None:
    async with rig.machine() as machine:
        rig.agent.link.become(GuestProtocolError("A frame of 4 GiB was announced."))
        with pytest.raises(BootError, match="could not be made ready: A frame of 4 GiB"):
            await machine.wait_ready()


async def test_a_machine_that_dies_before_it_is_ready_says_how(rig: Rig) -> None:
    async def panics(machine: ScriptedMachine) -> MachineOutcome | None:
        machine.say("Kernel panic - not syncing: no init")
        return MachineOutcome(reason=OutcomeReason.PANIC, detail="The guest's kernel panicked.")

    rig.platform.script = panics
    async with rig.machine() as machine:
        with pytest.raises(BootError, match=r"before its guest was ready.*panicked") as caught:
            await machine.wait_ready()
        assert caught.value.console == ("Kernel panic - not syncing: no init",)
        assert (await machine.wait()).reason is OutcomeReason.PANIC


async def test_a_machine_that_dies_in_mid_command_says_how(rig: Rig) -> None:
    async with rig.machine() as machine:
        rig.agent.link.become(rig.guest)
        await machine.wait_ready()
        rig.guest.gone = True
        rig.platform.machines[0].end(
            MachineOutcome(reason=OutcomeReason.CRASHED, detail="QEMU was killed.")
        )
        with pytest.raises(GuestGone, match=r"agent broke\. QEMU was killed\."):
            await machine.run(["true"])
        with pytest.raises(GuestGone, match=r"QEMU was killed\."):
            async with machine.spawn(["true"]):
                raise AssertionError


async def test_stop_asks_first_and_then_insists(rig: Rig) -> None:
    async with rig.machine() as machine:
        rig.agent.link.become(rig.guest)
        await machine.wait_ready()

        async def obey() -> None:
            await rig.guest.on_shutdown.wait()
            rig.platform.machines[0].end(
                MachineOutcome(reason=OutcomeReason.POWERED_OFF, detail="It shut down.")
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey)
            assert (await machine.stop()).reason is OutcomeReason.POWERED_OFF
        assert (await machine.stop()).reason is OutcomeReason.POWERED_OFF
    assert rig.guest.shutdowns == 1


async def test_stop_ends_a_guest_that_can_not_be_asked(rig: Rig) -> None:
    async with rig.machine() as machine:
        assert (await machine.stop()).reason is OutcomeReason.STOPPED


async def test_waiters_are_released_when_the_machine_is_left(rig: Rig) -> None:
    machine = rig.machine()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(GuestGone, match="stopped"):
                await machine.wait_ready()

        async with machine:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()


async def test_without_provisioners_there_is_no_guest_to_run_commands(rig: Rig) -> None:
    async with rig.machine(provisioners=()) as machine:
        with pytest.raises(ConfigError, match="no agent"):
            await machine.run(["true"])


async def test_streams_go_through_the_platforms_own_channels(rig: Rig) -> None:
    async with rig.machine() as machine:
        guest_side = rig.platform.machines[0].memory_channels.guest
        async with guest_side.listen(80) as listener:
            near = await machine.connect(80)
            far = await listener.accept()
            await near.send_all(b"hello")
            assert await far.receive_some() == b"hello"


async def test_pause_and_resume_reach_the_platform(rig: Rig) -> None:
    async with rig.machine() as machine:
        await machine.pause()
        assert rig.platform.machines[0].paused
        await machine.resume()
        assert not rig.platform.machines[0].paused


async def test_what_a_backend_can_not_do_is_refused_before_it_is_tried(rig: Rig) -> None:
    from microvm.abc import Capability

    rig.backend.capabilities = frozenset({Capability.OWN_CHANNELS})
    with pytest.raises(ConfigError, match="boot: backend 'scripted' has no capability"):
        async with rig.machine():
            raise AssertionError
    assert rig.platform.machines == []


async def test_who_can_not_pause_a_machine_is_told_so_and_what_to_do(rig: Rig) -> None:
    from microvm.abc import Capability

    rig.backend.capabilities = rig.backend.capabilities - {Capability.PAUSE}
    async with rig.machine() as machine:
        with pytest.raises(ConfigError, match="has no capability 'pause'") as caught:
            await machine.pause()
        assert caught.value.remedy == "No backend that is installed can: do without pause."


async def test_a_platform_that_fails_to_start_leaves_its_error_bare(rig: Rig) -> None:
    rig.platform.fail_start = BackendError("QEMU said no.")
    with pytest.raises(BackendError, match=r"QEMU said no\."):
        async with rig.machine():
            raise AssertionError


async def test_a_machine_is_entered_once(rig: Rig) -> None:
    machine = rig.machine()
    async with machine:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        async with machine:
            raise AssertionError


async def test_verbs_before_entry_say_what_to_do(rig: Rig) -> None:
    with pytest.raises(RuntimeError, match="async with Machine"):
        await rig.machine().run(["true"])


async def test_several_problems_are_told_together(rig: Rig) -> None:
    with pytest.raises(ConfigError) as caught:
        async with rig.machine(
            provisioners=("agent", "vpn"), boot=BootSource(kernel=Path("/nowhere"))
        ):
            raise AssertionError
    assert {p.where for p in caught.value.problems} == {"provisioners", "boot.kernel"}


async def test_a_single_problem_keeps_its_own_type(rig: Rig) -> None:
    with pytest.raises(PluginMissing, match="vpn"):
        async with rig.machine(provisioners=("agent", "vpn")):
            raise AssertionError


async def test_an_unusable_backend_is_never_replaced_when_asked_for_by_name(rig: Rig) -> None:
    other = ScriptedBackend(name="broken", usable=False, reason="It is off.", remedy="Turn it on.")
    manager = plugin_manager(rig.backend.factory(), other.factory(), rig.agent.factory())
    config = MachineConfig(backend="broken", boot=BootSource(kernel=rig.kernel))
    with pytest.raises(BackendUnavailable, match=r"It is off\.\nTurn it on\."):
        async with Machine(config, plugins=manager):
            raise AssertionError


async def test_the_choice_of_a_backend_says_what_was_passed_over(rig: Rig) -> None:
    other = ScriptedBackend(name="fast", usable=False, reason="No /dev/kvm.", preference=10)
    manager = plugin_manager(rig.backend.factory(), other.factory(), rig.agent.factory())
    async with Machine(
        MachineConfig(boot=BootSource(kernel=rig.kernel)), plugins=manager
    ) as machine:
        assert machine.backend.name == "scripted"
        assert "fast not usable: No /dev/kvm." in machine.backend.reason


async def test_no_backend_at_all_names_what_to_install() -> None:
    with pytest.raises(BackendUnavailable, match=r"pip install 'microvm-core\[host\]'"):
        async with Machine(plugins=plugin_manager()):
            raise AssertionError


async def test_a_problem_within_a_part_is_named_by_its_place_in_the_whole(rig: Rig) -> None:
    from microvm.config import ConfigProblem

    def refuse(options: Mapping[str, Any]) -> Any:
        raise ConfigError("No.", problems=[ConfigProblem("colour", "is no option of it.")])

    factory = attrs.evolve(rig.backend.factory(), create=refuse)
    manager = plugin_manager(factory, rig.agent.factory())
    with pytest.raises(ConfigError) as caught:
        async with Machine(MachineConfig(boot=BootSource(kernel=rig.kernel)), plugins=manager):
            raise AssertionError
    assert [p.where for p in caught.value.problems] == ["backend_options.colour"]


async def test_streams_read_in_a_nursery_say_once_how_the_machine_ended(rig: Rig) -> None:
    class Dying(EchoGuest):
        @asynccontextmanager
        async def spawn(self, argv: Sequence[str], **options: Any) -> AsyncIterator[Any]:
            yield None

    rig.guest = Dying()
    async with rig.machine() as machine:
        rig.agent.link.become(rig.guest)
        await machine.wait_ready()
        rig.platform.machines[0].end(
            MachineOutcome(reason=OutcomeReason.CRASHED, detail="QEMU was killed.")
        )

        async def read() -> None:
            raise GuestGone("The stream broke.")

        with pytest.raises(GuestGone, match=r"QEMU was killed\."):
            async with machine.spawn(["cat"]), trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(read)


async def test_who_asks_for_jobs_of_a_guest_that_has_gone_hears_how_it_went(rig: Rig) -> None:
    class Gone(EchoGuest):
        async def jobs(self) -> Any:
            raise GuestGone("The stream broke.")

        async def job(self, job_id: int) -> Any:
            raise GuestGone("The stream broke.")

    async with rig.machine() as machine:
        rig.agent.link.become(Gone())
        await machine.wait_ready()
        rig.platform.machines[0].end(
            MachineOutcome(reason=OutcomeReason.CRASHED, detail="QEMU was killed.")
        )
        for ask in (machine.jobs, partial(machine.job, 1)):
            with pytest.raises(GuestGone, match=r"broke\. QEMU was killed\."):
                await ask()


async def test_a_paused_guest_is_not_asked_before_it_is_stopped(rig: Rig) -> None:
    async with rig.machine() as machine:
        rig.agent.link.become(rig.guest)
        await machine.wait_ready()
        await machine.pause()
        assert (await machine.stop()).reason is OutcomeReason.STOPPED
    assert rig.guest.shutdowns == 0


async def test_a_provisioner_may_build_on_the_guest_that_another_brings(rig: Rig) -> None:
    """After all have reported, and before the machine is ready."""
    order: list[str] = []

    async def build_on(guest: Guest) -> None:
        await trio.lowlevel.checkpoint()
        order.append("built" if guest is rig.guest else "on another")

    rig.agent.link.build_on = build_on  # type: ignore[method-assign]
    async with rig.machine() as machine:
        rig.agent.link.become(rig.guest)
        await machine.wait_ready()
        order.append("ready")
    assert order == ["built", "ready"]


async def test_what_a_provisioner_has_made_is_had_by_its_class(rig: Rig) -> None:
    class Another(GuestLink):
        """Of a provisioner that is not there."""

    async with rig.machine() as machine:
        assert machine.link(ScriptedLink) is rig.agent.link
        with pytest.raises(ConfigError, match="This machine has no Another"):
            machine.link(Another)


async def test_what_can_not_be_built_on_it_is_the_boots_error(rig: Rig) -> None:
    async def build_on(guest: Guest) -> None:
        raise GuestProtocolError("The server did not start.")

    rig.agent.link.build_on = build_on  # type: ignore[method-assign]
    async with rig.machine() as machine:
        rig.agent.link.become(rig.guest)
        with pytest.raises(BootError, match="could not be made ready: The server did not start"):
            await machine.wait_ready()


class Dial(VirtioDevice):
    """A device that only has to be there."""

    device_id = 4
    queue_max_sizes = (16,)

    async def run(self, activation: Any) -> None:
        raise AssertionError


async def test_a_device_is_had_by_its_name_in_the_metrics(tmp_path: Path) -> None:
    capabilities = frozenset({Capability.OWN_KERNEL, Capability.VIRTIO_DEVICES})
    backend = ScriptedBackend(capabilities=capabilities)
    made: list[Dial] = []

    def create(options: Mapping[str, Any]) -> Dial:
        made.append(Dial())
        return made[-1]

    dial = DeviceFactory(name="dial", summary="for tests", virtio_id=4, create=create)
    config = MachineConfig(
        boot=BootSource(kernel=tiny_kernel(tmp_path / "kernel")),
        vsock=None,
        provisioners=(),
        devices=(DeviceConfig(name="dial"), DeviceConfig(name="dial")),
    )
    async with Machine(config, plugins=plugin_manager(backend.factory(), dial)) as machine:
        assert [machine.device("dial0"), machine.device("dial1")] == made
        with pytest.raises(ConfigError, match="no device 'dial2'; it has dial0, dial1"):
            machine.device("dial2")
