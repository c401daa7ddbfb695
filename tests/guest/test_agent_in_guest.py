"""The agent as process 1 of a real guest, on a kernel of its own."""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from microvm import GuestGone, Machine, MachineConfig, OutcomeReason, TtySize
from microvm_guest.client import AgentClient, open_client
from microvm_guest.image import default_image
from microvm_guest.ports import GUEST_PORT

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]


async def printed(machine: Machine, script: str) -> str:
    """What a shell script prints, which must succeed."""
    result = await machine.run(["sh", "-c", script], check=True)
    return result.stdout.decode().strip()


@asynccontextmanager
async def second_client(machine: Machine) -> AsyncIterator[AgentClient]:
    """Another connection to the agent, begun by the host."""
    async with open_client(await machine.connect(GUEST_PORT)) as client:
        yield client


async def test_what_programs_expect_of_a_system_is_there() -> None:
    async with Machine() as machine:
        mounts = {
            fields[1]: fields[2]
            for fields in map(str.split, (await printed(machine, "cat /proc/mounts")).splitlines())
        }
        expected = {
            "/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/dev/pts": "devpts",
            "/dev/shm": "tmpfs", "/run": "tmpfs", "/tmp": "tmpfs", "/sys/fs/cgroup": "cgroup2",
        }  # fmt: skip
        assert mounts.items() >= expected.items()
        assert await printed(machine, "cat /proc/1/comm; hostname") == "init\nmicrovm"
        assert await printed(machine, "echo x > /dev/null; echo x | cat /dev/fd/0") == "x"
        assert await printed(machine, "echo hi > /dev/shm/a && cat /dev/shm/a") == "hi"
        assert "LOOPBACK,UP" in await printed(machine, "ip link show lo")
        assert await printed(machine, "head -c 16 /dev/urandom | wc -c") == "16"


async def test_the_clock_is_the_hosts_until_somebody_in_the_guest_sets_it_on_purpose() -> None:
    async with Machine() as machine:
        before = time.time()
        guest = float(await printed(machine, "date +%s"))
        assert before - 2 <= guest <= time.time() + 2
        await machine.run(["date", "-s", "2001-02-03 04:05:06"], check=True)
        assert await printed(machine, "date +%Y") == "2001"
        async with second_client(machine) as client:
            await client.set_clock()
            await client.ping()
        assert abs(float(await printed(machine, "date +%s")) - time.time()) <= 2


async def test_orphans_of_orphans_are_reaped_and_no_process_is_left() -> None:
    orphans = "for i in $(seq 50); do (setsid sh -c 'true &' &); done"
    children = "grep -lE '^PPid:.1$' /proc/[0-9]*/status 2>/dev/null | wc -l"
    async with Machine() as machine:
        for _ in range(3):
            await printed(machine, orphans)
        while await printed(machine, children) != "1":  # which asks
            pass
        assert (await (await machine.wait_ready()).status())["commands"] == 0


async def test_100_commands_at_once_keep_their_streams_apart() -> None:
    async def one(number: int) -> None:
        script = f"echo {number}; cat; echo {number} >&2; exit {number}"
        text = f"stdin of {number}\n".encode() * 1000
        result = await machine.run(["sh", "-c", script], stdin=text)
        assert result.exit_code == number
        assert result.stdout == f"{number}\n".encode() + text
        assert result.stderr == f"{number}\n".encode()

    async with Machine() as machine, trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one, number)


async def test_a_terminal_has_its_size_and_a_resize_is_signalled() -> None:
    script = "trap 'stty size' WINCH; stty size; tty; while :; do read line; done"
    async with Machine() as machine:
        size = TtySize(rows=33, cols=99)
        async with machine.spawn(["sh", "-c", script], tty=size) as process:
            text = await receive_until(process.stdout, b"/dev/pts/")
            assert b"33 99" in text
            await process.resize(TtySize(rows=44, cols=111))
            # A signal that comes right before the shell's read is looked at after that.
            await process.stdin.send_all(b"\n")
            await receive_until(process.stdout, b"44 111")
            await process.stdin.send_all(b"\x03")
            assert (await process.wait()).signal == signal.SIGINT


async def receive_until(stream: trio.abc.ReceiveStream, mark: bytes) -> bytes:
    text = b""
    while mark not in text:
        chunk = await stream.receive_some()
        assert chunk, text
        text += chunk
    return text


async def test_user_directory_and_environment_are_as_asked() -> None:
    async with Machine() as machine:
        script = "id -u; id -g; pwd; echo $A $HOME; touch /root/x 2>/dev/null || echo denied"
        result = await machine.run(
            ["sh", "-c", script], user="nobody", cwd="/tmp", env={"A": "b"}, check=True
        )
        assert result.stdout.split() == b"65534 65534 /tmp b /nonexistent denied".split()
        result = await machine.run(["sh", "-c", "pwd; echo $HOME; ulimit -n; umask"], check=True)
        assert result.stdout.split() == b"/ /root 1024 0022".split()


async def test_a_background_process_does_not_hold_up_run_and_lives_on() -> None:
    async with Machine() as machine:
        assert await printed(machine, "setsid sleep 1000 & echo begun") == "begun"
        assert await printed(machine, "cat /proc/[0-9]*/comm | grep -c sleep") == "1"


async def test_a_second_client_is_served_apart_from_the_first() -> None:
    async with Machine() as machine:
        first = await machine.wait_ready()
        async with second_client(machine) as second:
            assert (await second.run(["echo", "hi"], check=True)).stdout == b"hi\n"
            status = await first.status()
            assert (status["connections"], status["commands"]) == (2, 0)
            async with machine.spawn(["cat"]) as process:
                await process.stdin.send_all(b"x")
                assert await process.stdout.receive_some() == b"x"
                assert (await second.status())["commands"] == 1
        assert await first.ping() > 0
        for _ in range(20):  # more than the agent serves at once: those that left made room
            async with second_client(machine) as second:
                assert await second.ping() > 0


async def test_its_status_tells_of_the_guest() -> None:
    async with Machine(MachineConfig(mem_size_mib=64)) as machine:
        status = await (await machine.wait_ready()).status()
    assert status["pid"] == 1
    assert str(status["kernel"]).startswith(default_image().kernel_version)
    assert 32 * 1024 < int(status["mem_available_kib"]) < int(status["mem_total_kib"]) < 64 * 1024
    assert 0 < int(status["uptime_ms"]) < 60_000
    assert (status["connections"], status["commands"]) == (1, 0)


ENDS = [
    ("reboot", OutcomeReason.RESET),
    ("poweroff", OutcomeReason.POWERED_OFF),
    ("halt", OutcomeReason.POWERED_OFF),
]


@pytest.mark.smp
@pytest.mark.parametrize(("command", "reason"), ENDS)
@pytest.mark.parametrize("vcpus", [1, 2])
async def test_a_guest_whose_kernel_is_ended_in_mid_command_is_gone_and_told_how(
    command: str, reason: OutcomeReason, vcpus: int
) -> None:
    async with Machine(MachineConfig(vcpu_count=vcpus)) as machine:
        with pytest.raises(GuestGone):
            await machine.run(["sh", "-c", f"{command} -f; sleep 1000"])
        assert (await machine.wait()).reason is reason


@pytest.mark.parametrize(("command", "reason"), ENDS)
async def test_a_guest_that_is_asked_to_end_from_within_ends_its_commands_first(
    command: str, reason: OutcomeReason
) -> None:
    script = f"trap 'echo asked; exit 0' TERM; kill -9 1; {command}; sleep 1000 & wait"
    async with Machine() as machine:
        async with machine.spawn(["sh", "-c", script]) as process:
            assert await process.stdout.receive_some() == b"asked\n"
        assert (await machine.wait()).reason is reason
