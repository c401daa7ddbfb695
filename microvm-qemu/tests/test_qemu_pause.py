"""A pause of QEMU's and a driver's reset: the devices are told which it is.

Nothing was asked for in these guests' rings, so that all stand at 0, as they do after each 65536
requests. Then both look alike to a device's back end, and only we know.
"""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
import trio.testing

from microvm.abc import Activation
from microvm.errors import BackendError, GuestGone
from microvm.testing.micro_guest import MicroGuest
from microvm.virtio.features import VERSION_1
from microvm.virtio.ids import DeviceType
from microvm.virtio.queue import QueueLayout
from microvm_qemu._machine import UNDO_WITHIN_S, QemuMachine
from microvm_qemu._platform import QemuPlatform
from microvm_qemu._process import HeldProcess
from microvm_qemu._wiring import Cables

from .conftest import PlanOf
from .idle_devices import Idle
from .test_qemu_monitor import Peer

pytestmark = pytest.mark.usefixtures("leaves_nothing")

# --- on QEMU -----------------------------------------------------------------------------------

SLOTS = [0xFEB0_0000 + 0x200 * slot for slot in range(24)]
"""Where QEMU's `microvm` machine puts virtio-mmio devices."""
RINGS = [QueueLayout(size=8, desc=0x41_0000, avail=0x41_1000, used=0x41_2000)]
GO_ON = 0x42_0000
"""Where the device tells the guest to reset it once more."""


class Living(Idle):
    """Takes down what happens to it, and lets the guest go on in its third run."""

    def __init__(self) -> None:
        super().__init__(DeviceType.ENTROPY, (64,))
        self.life: list[str] = []

    def reset(self) -> None:
        self.life.append("reset")

    async def run(self, activation: Activation) -> None:
        self.life.append("run")
        if self.life.count("run") == 3:
            activation.memory.write(GO_ON, b"\1\0")
        await trio.sleep_forever()

    async def has_lived(self, *life: str) -> None:
        """Wait for so much, and see that it is this."""
        while len(self.life) < len(life):  # noqa: ASYNC110 - it is in memory that it comes
            await trio.sleep(0.001)
        assert self.life == list(life)


async def test_a_pause_is_no_reset_and_a_reset_before_or_after_it_is_one(
    platform: QemuPlatform, plan_of: PlanOf, tmp_path: Path
) -> None:
    program = MicroGuest()
    program.find_device(DeviceType.ENTROPY, SLOTS)
    program.drive(RINGS, VERSION_1)
    program.drive(RINGS, VERSION_1)
    program.wait_for_u16(GO_ON, 1)
    program.drive(RINGS, VERSION_1)
    program.halt()
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(program.image())
    device = Living()
    life = ["reset", "run", "reset", "run"]
    async with platform.start(plan_of(kernel, [device])) as machine:
        with trio.fail_after(30):
            await device.has_lived(*life)
            await machine.pause()
            await machine.resume()
            await device.has_lived(*life, "run", "reset", "run")


# --- what is told, and when --------------------------------------------------------------------


class NoProcess(HeldProcess):
    """Nobody asks for it here."""

    def __init__(self) -> None:
        """Start nothing."""


@asynccontextmanager
async def machine_and_monitor() -> AsyncIterator[tuple[QemuMachine, Peer]]:
    """A machine whose QEMU is played by the test."""
    with closing(Cables(0)) as cables:
        far = socket.socket(fileno=os.dup(cables.wiring.monitor))
        cables.close_far()
        with trio.socket.from_stdlib_socket(far) as qemu:
            async with trio.open_nursery() as nursery:
                machine = QemuMachine(NoProcess(), cables)
                nursery.start_soon(machine._read_monitor, nursery)
                yield machine, Peer(qemu)
                nursery.cancel_scope.cancel()


async def test_a_pause_is_announced_before_qemu_hears_of_it_and_until_it_is_to_go_on() -> None:
    async with machine_and_monitor() as (machine, peer), trio.open_nursery() as nursery:
        assert not machine.pause_notice.announced
        nursery.start_soon(machine.pause)
        command = await peer.command()
        assert command["execute"] == "stop"
        assert machine.pause_notice.announced
        await peer.say(**{"return": {}, "id": command["id"]})
        await trio.testing.wait_all_tasks_blocked()
        assert machine.pause_notice.announced
        nursery.start_soon(machine.resume)
        command = await peer.command()
        assert command["execute"] == "cont"
        assert not machine.pause_notice.announced
        await peer.say(**{"return": {}, "id": command["id"]})


async def test_a_pause_that_is_refused_is_withdrawn() -> None:
    async with machine_and_monitor() as (machine, peer), trio.open_nursery() as nursery:

        async def refuse() -> None:
            number = (await peer.command())["id"]
            await peer.say(id=number, error={"class": "GenericError", "desc": "not now"})

        nursery.start_soon(refuse)
        with pytest.raises(BackendError, match="not now"):
            await machine.pause()
        assert not machine.pause_notice.announced


async def test_a_pause_of_a_qemu_that_is_gone_is_withdrawn() -> None:
    async with machine_and_monitor() as (machine, peer):
        peer.socket.close()
        with pytest.raises(GuestGone):
            await machine.pause()
        assert not machine.pause_notice.announced


async def test_a_pause_that_is_cancelled_is_undone() -> None:
    """QEMU may have heard of it, and hears what comes next after it."""
    async with machine_and_monitor() as (machine, peer), trio.open_nursery() as nursery:
        heard = []

        async def answer() -> None:
            while True:
                command = await peer.command()
                heard.append((command["execute"], machine.pause_notice.announced))
                if command["execute"] == "cont":
                    await peer.say(**{"return": {}, "id": command["id"]})

        nursery.start_soon(answer)
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_later, scope)
            await machine.pause()
        assert scope.cancelled_caught
        assert heard == [("stop", True), ("cont", True)]
        assert not machine.pause_notice.announced
        nursery.cancel_scope.cancel()


def test_a_qemu_that_says_nothing_holds_no_pause_that_is_cancelled() -> None:
    async def body() -> None:
        async with machine_and_monitor() as (machine, _):
            begin = trio.current_time()
            with trio.move_on_after(5):
                await machine.pause()
            assert trio.current_time() - begin == pytest.approx(5 + UNDO_WITHIN_S)
            assert not machine.pause_notice.announced

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def cancel_later(scope: trio.CancelScope) -> None:
    """Once everybody waits."""
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
