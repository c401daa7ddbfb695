"""Machines in worker processes, with real guests: nothing an application sees is different."""

import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from microvm import GuestGone, GuestRefused, Machine, MachineConfig, OutcomeReason, VsockConfig
from microvm.testing.census import Census

pytestmark = [pytest.mark.linux_guest, pytest.mark.usefixtures("leaves_nothing")]

ECHO, DIALLED = 7000, 9000
DATA = bytes(range(256)) * 4096 * 4


def config(**fields: Any) -> MachineConfig:
    return MachineConfig(isolation="process", **fields)


async def install(machine: Machine, peer: bytes) -> None:
    command = ["sh", "-c", "cat > /tmp/peer && chmod +x /tmp/peer"]
    await machine.run(command, stdin=peer, check=True)


async def exchange(stream: Any, data: bytes) -> bytes:
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


async def test_commands_run_and_are_streamed() -> None:
    async with Machine(config()) as machine:
        assert (await machine.run(["cat"], stdin=DATA, check=True)).stdout == DATA
        assert (await machine.run(["sh", "-c", "exit 7"])).exit_code == 7
        async with machine.spawn(["sort"]) as process:
            await process.stdin.send_all(b"b\na\n")
            await process.stdin.aclose()
            assert await process.stdout.receive_some() == b"a\nb\n"
            assert (await process.wait()).exit_code == 0
        assert "worker process" in machine.backend.reason
        phases = list(machine.timing)
        assert phases[:4] == ["backend", "plugins", "image", "worker"]
        assert phases[-2:] == ["kernel", "agent"]
        assert len(phases) > 6


def program_of(pid: int) -> str:
    return os.path.basename(os.readlink(f"/proc/{pid}/exe"))


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


async def test_qemu_is_the_workers_child_and_goes_with_it() -> None:
    async with Machine(config(backend="qemu")) as machine:
        await machine.wait_ready()
        (worker,) = Census.take().children
        assert program_of(worker).startswith("python")
        (qemu,) = children_of(worker)
        assert program_of(qemu).startswith("qemu")
    with pytest.raises(ProcessLookupError):
        os.kill(qemu, 0)


async def test_4_mib_go_to_a_guest_port_and_back_and_calls_come_in(vsock_peer: bytes) -> None:
    async with Machine(config()) as machine:
        await install(machine, vsock_peer)
        with pytest.raises(GuestRefused):
            await machine.connect(ECHO)
        async with machine.spawn(["/tmp/peer", "echo", str(ECHO)]) as process:
            assert await process.stdout.receive_some() == b"listening\n"
            stream = await machine.connect(ECHO)
            assert isinstance(stream, trio.SocketStream)
            assert stream.socket.family == socket.AF_UNIX
            assert await exchange(stream, DATA) == DATA

        async def take_a_call() -> None:
            async with machine.listen(DIALLED) as listener:
                task_started.set()
                assert await exchange(await listener.accept(), b"welcome") == b"hello"

        task_started = trio.Event()
        dial = ["/tmp/peer", "dial", str(DIALLED)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_a_call)
            await task_started.wait()
            answered = await machine.run(dial, stdin=b"hello", check=True)
            assert answered.stdout == b"welcome"
        assert (await machine.run(dial)).exit_code == 1


async def test_connections_outlive_a_pause() -> None:
    async with Machine(config()) as machine:
        guest = await machine.wait_ready()
        await machine.pause()
        with trio.move_on_after(0.3) as waited:
            await guest.ping()
        assert waited.cancelled_caught
        await machine.resume()
        assert await guest.ping() > 0


async def test_another_process_reaches_a_guest_port_by_the_workers_socket(
    tmp_path: Path, vsock_peer: bytes
) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    path = folder / "vsock"
    async with Machine(config(vsock=VsockConfig(uds_path=path))) as machine:
        await install(machine, vsock_peer)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with machine.spawn(["/tmp/peer", "echo", str(ECHO)]) as process:
            assert await process.stdout.receive_some() == b"listening\n"
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(b"CONNECT %d\n" % ECHO)
                assert (await stream.receive_some()).startswith(b"OK ")
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
    assert os.listdir(folder) == []


async def test_stop_asks_the_guest_and_it_ends_by_itself() -> None:
    async with Machine(config()) as machine:
        await machine.wait_ready()
        assert (await machine.stop()).reason is OutcomeReason.POWERED_OFF


async def test_a_panic_is_told_with_the_console() -> None:
    async with Machine(config()) as machine:
        with pytest.raises(GuestGone, match="panic") as caught:
            await machine.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"])
        assert any("Kernel panic" in line for line in caught.value.console)
        assert (await machine.wait()).reason is OutcomeReason.PANIC


async def test_a_killed_worker_takes_its_guest_along_and_ends_a_command() -> None:
    async with Machine(config()) as machine:
        await machine.wait_ready()
        (worker,) = Census.take().children
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_soon, machine, worker)
            with pytest.raises(GuestGone, match="worker process was killed by signal SIGKILL"):
                await machine.run(["sh", "-c", "while :; do :; done"])
        assert (await machine.wait()).reason is OutcomeReason.CRASHED


async def kill_soon(machine: Machine, pid: int) -> None:
    await machine.run(["true"])
    os.kill(pid, signal.SIGKILL)


async def test_cancelling_in_mid_boot_leaves_nothing() -> None:
    for seconds in (0.02, 0.1, 0.25, 0.4):
        with trio.move_on_after(seconds):
            async with Machine(config()) as machine:
                await machine.wait_ready()


def test_the_command_line_runs_one(cli: Any) -> None:
    done = cli("run", "--isolation", "process", "--", "sh", "-c", "cat; exit 7", stdin=b"hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"hello", b"")
