"""The guest's wall clock after a pause, and after its host has slept.

The guest stands for less than a second: each command brings the host's time with it, and what that
shows to be lost is made up for only from a second on. So what is seen here is the notice's doing.
"""

import time

import pytest
import trio
import trio.testing

from microvm import Machine
from microvm.testing.host_clocks import SimulatedClocks

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

ALLOWED_S = 0.1
STOOD_S = 0.7
SOON_S = 5


async def behind_s(machine: Machine) -> float:
    """How far the guest's clock is behind the host's, by the time of a file made just now."""
    before = time.time()
    await machine.files.mkdir("/tmp/stamp")
    after = time.time()
    stamp = (await machine.files.stat("/tmp/stamp")).mtime_ns / 1e9
    await machine.files.remove("/tmp/stamp")
    return max(before - stamp, min(0.0, after - stamp))


async def is_right_soon(machine: Machine) -> bool:
    """Whether the guest's clock is the host's within a few seconds."""
    until = trio.current_time() + SOON_S
    while not (right := abs(await behind_s(machine)) < ALLOWED_S):
        if trio.current_time() > until:
            break
    return right


async def stand_still(machine: Machine, seconds: float) -> None:
    """Stop the guest's CPUs and let them go on, with nobody told: as a sleep of the host does."""
    running = machine._started()
    await running.pause()
    await trio.sleep(seconds)
    await running.resume()


async def test_after_a_pause_the_clock_is_right_at_once() -> None:
    async with Machine() as machine:
        guest = await machine.wait_ready()
        assert abs(await behind_s(machine)) < ALLOWED_S
        await machine.pause()
        await trio.sleep(STOOD_S)
        await machine.resume()
        assert abs(await behind_s(machine)) < ALLOWED_S
        assert (await guest.status())["pauses"] == 1


@pytest.mark.qemu
async def test_without_a_word_from_the_host_it_would_not_be() -> None:
    """What the others would show if the notice did nothing: QEMU's guests do stand still."""
    async with Machine() as machine:
        await machine.wait_ready()
        await stand_still(machine, STOOD_S)
        assert await behind_s(machine) > STOOD_S / 2


async def test_after_the_host_has_slept_the_clock_is_right() -> None:
    clocks = SimulatedClocks()
    async with Machine(clocks=clocks) as machine:
        await machine.wait_ready()
        await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(3):
            await stand_still(machine, STOOD_S)
            clocks.sleep(STOOD_S)
            assert await is_right_soon(machine)


async def test_a_host_clock_that_was_wrong_and_is_set_back_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, ahead_s = time.time_ns, 3600
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead_s * 10**9)
    clocks = SimulatedClocks()
    async with Machine(clocks=clocks) as machine:
        await machine.wait_ready()
        assert abs(await behind_s(machine) + 3600) < ALLOWED_S
        await trio.testing.wait_all_tasks_blocked(0.01)
        ahead_s = 0
        clocks.set_wall(-3600)
        assert await is_right_soon(machine)


async def test_a_clock_that_the_guest_was_given_on_purpose_keeps_its_offset() -> None:
    async with Machine() as machine:
        await machine.run(["date", "-s", "2001-02-03 04:05:06"], check=True)
        await machine.pause()
        await trio.sleep(STOOD_S)
        await machine.resume()
        assert (await machine.run(["date", "+%Y"], check=True)).stdout == b"2001\n"
