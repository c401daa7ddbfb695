"""A worker process and its caller's: neither outlives what the other is there for."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import trio
from microvm import BootSource, DeviceConfig, Machine, MachineConfig
from pathlib import Path

config = MachineConfig(
    backend="rig", isolation="process", provisioners=(), vsock=None,
    boot=BootSource(kernel=sys.argv[2]), backend_options={"script": sys.argv[3]},
    devices=[DeviceConfig(name="diary", options={"folder": Path(sys.argv[4])})],
)

async def main():
    try:
        async with Machine(config) as machine:
            import subprocess
            (worker,) = Path("/proc/self/task/%d/children" % __import__("os").getpid()
                             ).read_text().split()
            print(worker, flush=True)
            if len(sys.argv) > 5:
                __import__("os").fork()
            await trio.sleep_forever()
    finally:
        print(machine.outcome.reason.value, flush=True)

trio.run(main)
"""


class Caller:
    """A program with a machine in a worker process."""

    def __init__(self, rig, script, *more):
        rig.config()  # makes the kernel
        rig.diary()
        self.diary = rig.folder / "diary"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, json.dumps(rig.path)),
                *(str(rig.folder / "kernel"), script, str(self.diary), *more),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.worker = os.pidfd_open(int(line))

    def worker_ended_within(self, seconds):
        poll = select.poll()
        poll.register(self.worker, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        os.close(self.worker)


@pytest.fixture
def caller(rig):
    made = []

    def make(script="idle", *more):
        made.append(Caller(rig, script, *more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_kill_9_of_the_caller_ends_the_worker_and_leaves_its_devices_tidily(caller):
    program = caller()
    program.process.kill()
    assert program.worker_ended_within(1.0)
    assert (program.diary / "left").exists()


@pytest.mark.parametrize("script", ["blocked", "spinning"])
def test_kill_9_of_the_caller_ends_a_worker_whose_loop_is_held(caller, script):
    program = caller(script)
    time.sleep(0.2)
    program.process.kill()
    assert program.worker_ended_within(1.0)


def test_a_fork_of_the_callers_does_not_keep_the_worker_alive(caller):
    program = caller("idle", "fork")
    time.sleep(0.2)
    program.process.kill()
    assert program.worker_ended_within(1.0)
    assert (program.diary / "left").exists()


def test_ctrl_c_in_a_terminal_reaches_the_caller_alone_and_ends_the_machine_once(caller):
    program = caller()
    os.killpg(program.process.pid, signal.SIGINT)
    out, err = program.process.communicate(timeout=20)
    assert out.split() == ["stopped"]
    assert err.count("Traceback") == 1
    assert err.endswith("KeyboardInterrupt\n")
    assert "Worker" not in err
    assert program.worker_ended_within(0)
    assert (program.diary / "left").exists()


def test_sigterm_to_the_worker_alone_ends_it_tidily(caller):
    program = caller()
    signal.pidfd_send_signal(program.worker, signal.SIGTERM)
    assert program.worker_ended_within(1.0)
    assert (program.diary / "left").exists()


def test_a_worker_whose_caller_is_not_there_does_not_begin():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import socket\n"
            "ours, theirs = socket.socketpair()\n"
            "from microvm.worker.__main__ import main\n"
            "main(theirs.fileno(), 1)",
        ],
        timeout=20,
        check=False,
    )
    assert done.returncode == 70
