"""A child that hangs on a thread: its end, ours, and what is left of both."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from microvm.errors import BackendError
from microvm_qemu._launcher import dying_with_parent
from microvm_qemu._process import held_process

pytestmark = pytest.mark.usefixtures("leaves_nothing")

SLEEP = ["/bin/sleep", "1000"]

KILLED_WITHIN_S = 2.0


@contextmanager
def stderr_pair() -> Iterator[tuple[int, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield far.fileno(), near


async def run(argv: list[str]) -> int:
    async with held_process(argv, pass_fds=(), stderr=2) as process:
        return await process.wait()


async def test_the_exit_code_is_the_programs() -> None:
    assert await run(["/bin/sh", "-c", "exit 7"]) == 7


async def test_a_signal_is_a_negative_exit_code() -> None:
    assert await run(["/bin/sh", "-c", "kill -TERM $$"]) == -signal.SIGTERM


async def test_leaving_the_block_ends_it() -> None:
    async with held_process(SLEEP, pass_fds=(), stderr=2) as process:
        pid = process.pid
        os.kill(pid, 0)
    assert process.ended
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_program_that_ignores_signals_is_ended_too() -> None:
    argv = ["/bin/sh", "-c", "trap '' TERM INT HUP; while :; do /bin/sleep 1000; done"]
    with trio.fail_after(5):
        async with held_process(argv, pass_fds=(), stderr=2):
            pass


async def test_a_stopped_program_is_ended_too() -> None:
    async with held_process(SLEEP, pass_fds=(), stderr=2) as process:
        os.kill(process.pid, signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL


async def test_cancelling_ends_it() -> None:
    with trio.move_on_after(60) as scope:
        async with held_process(SLEEP, pass_fds=(), stderr=2) as process:
            scope.cancel()
            await process.wait()
    assert process.ended


async def test_killing_twice_and_after_its_end_is_fine() -> None:
    async with held_process(SLEEP, pass_fds=(), stderr=2) as process:
        process.kill()
        process.kill()
        await process.wait()
        process.kill()


async def test_several_tasks_may_wait_for_it() -> None:
    ends: list[int] = []

    async def wait() -> None:
        ends.append(await process.wait())

    async with held_process(SLEEP, pass_fds=(), stderr=2) as process, trio.open_nursery() as n:
        n.start_soon(wait)
        n.start_soon(wait)
        process.kill()
    assert ends == [-9, -9]


@pytest.mark.parametrize(
    ("program", "words"),
    [("/nowhere/program", "No such file"), ("/etc/passwd", "Permission denied"), ("/", "denied")],
)
async def test_what_can_not_be_started_is_named(program: str, words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        await run([program])
    assert program in caught.value.message


async def test_an_argument_with_nul_is_a_typed_error() -> None:
    with pytest.raises(BackendError, match="null byte"):
        await run(["/bin/true", "a\0b"])


async def test_it_inherits_what_it_was_given_and_nothing_else() -> None:
    given, kept = socket.socketpair()
    with given, kept, stderr_pair() as (far, near):
        fd = given.fileno()
        argv = [
            "/bin/sh",
            "-c",
            "exec 1>&2; for f in /proc/$$/fd/*; do echo ${f##*/}; done",
        ]
        async with held_process(argv, pass_fds=(fd,), stderr=far) as process:
            await process.wait()
        listed = {int(word) for word in near.recv(4096).split()}
    assert {0, 1, 2, fd} <= listed
    assert kept.fileno() not in listed
    assert len(listed) <= 6  # and what sh has open to list them


async def test_the_terminals_ctrl_c_does_not_reach_it() -> None:
    async with held_process(SLEEP, pass_fds=(), stderr=2) as process:
        assert os.getsid(process.pid) == process.pid


async def test_it_has_a_thread_of_its_own_as_long_as_it_lives() -> None:
    def holders() -> int:
        return sum(thread.name == "microvm-qemu" for thread in threading.enumerate())

    async with held_process(SLEEP, pass_fds=(), stderr=2):
        assert holders() == 1
        async with held_process(SLEEP, pass_fds=(), stderr=2):
            assert holders() == 2
    assert holders() == 0


# --- the death signal ------------------------------------------------------------------------

SETPRIV = "/usr/bin/setpriv"

PARENT = """
import os, sys, trio
from microvm_qemu._launcher import dying_with_parent
from microvm_qemu._process import held_process

async def main():
    argv = dying_with_parent(
        ["/bin/sleep", "1000"], setpriv=sys.argv[1] or None, python=sys.executable,
        parent=os.getpid(),
    )
    async with held_process(argv, pass_fds=(), stderr=2) as process:
        # It asks for its death signal first, and is sleep only then.
        while open(f"/proc/{process.pid}/comm").read() != "sleep\\n":
            await trio.sleep(0.001)
        print(process.pid, flush=True)
        await process.wait()

trio.run(main)
"""


@pytest.mark.parametrize("setpriv", [SETPRIV, ""])
def test_kill_9_of_the_parent_ends_the_child(setpriv: str) -> None:
    if setpriv and not Path(setpriv).exists():
        pytest.skip("no setpriv")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, setpriv], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout:
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            parent.wait()
            ended, _, _ = select.select([child], [], [], KILLED_WITHIN_S)
            assert ended
        finally:
            os.close(child)


async def test_the_shim_gives_up_if_the_parent_has_died_before_it_asked() -> None:
    not_us = 1
    argv = dying_with_parent(SLEEP, setpriv=None, python=sys.executable, parent=not_us)
    with stderr_pair() as (far, near):
        async with held_process(argv, pass_fds=(), stderr=far) as process:
            with trio.fail_after(20):
                assert await process.wait() == 1
        assert b"parent has died" in near.recv(4096)


def test_the_programs_arguments_are_behind_the_launchers_own() -> None:
    argv = ["/bin/qemu", "-kernel", "--", "-c"]
    with_setpriv = dying_with_parent(argv, setpriv="/s", python="/p", parent=5)
    assert with_setpriv == ["/s", "--pdeathsig", "KILL", "--", *argv]
    with_shim = dying_with_parent(argv, setpriv=None, python="/p", parent=5)
    assert with_shim[:4] == ["/p", "-I", "-S", "-c"]
    assert with_shim[5:] == ["5", *argv]
