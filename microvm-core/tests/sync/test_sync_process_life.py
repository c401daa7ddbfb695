"""A program's ends, and what becomes of its machines: each program is a process of its own.

What the guest's end prints ("left") proves that a machine was ended in order, once.
"""

import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BOUND_S = 60

PRELUDE = """
import os, signal, sys, tempfile, threading, time
from pathlib import Path
sys.path.insert(0, {here!r})
from rig import Rig, on_loop
import microvm.sync

def left():
    print("left", os.getpid() == PID, flush=True)

PID = os.getpid()
rig = Rig(Path(tempfile.mkdtemp(dir={folder!r})), on_left=left)
"""


@pytest.fixture
def argv(tmp_path):
    def make(body):
        text = PRELUDE.format(here=str(HERE), folder=str(tmp_path)) + textwrap.dedent(body)
        return [sys.executable, "-W", "error", "-c", text]

    return make


@pytest.fixture
def program(argv):
    """Run a program to its end."""

    def run(body):
        return subprocess.run(
            argv(body), capture_output=True, text=True, timeout=BOUND_S, check=False
        )

    return run


@contextmanager
def running(command):
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# --- exits -----------------------------------------------------------------------------------


def test_a_program_that_never_leaves_its_machine_ends_it_all_the_same(program):
    done = program("machine = rig.machine().__enter__(); print(machine.run(['echo', 'x']).stdout)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'x'\nleft True\n", "")


def test_sys_exit_within_the_block(program):
    done = program("""
        with rig.machine() as machine:
            machine.wait_ready()
            sys.exit(7)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (7, "left True\n", "")


def test_an_uncaught_exception(program):
    done = program("""
        machine = rig.machine().__enter__()
        machine.wait_ready()
        raise ValueError("mine")
    """)
    assert (done.returncode, done.stdout) == (1, "left True\n")
    assert done.stderr.rstrip().endswith("ValueError: mine")


def test_threads_that_still_use_a_machine_at_the_end_of_the_main_thread_may_finish(program):
    done = program("""
        def work():
            with rig.machine() as machine:
                threading.main_thread().join()
                print(machine.run(["echo", "late"]).stdout)
        threading.Thread(target=work).start()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'late'\nleft True\n", "")


def test_a_daemon_thread_in_a_call_does_not_hold_up_the_exit(program):
    done = program("""
        machine = rig.machine().__enter__()
        machine.wait_ready()
        threading.Thread(target=machine.run, args=(["sleep"],), daemon=True).start()
        microvm.sync._loop.background_loop().call(rig.guest.sleeping.wait)
    """)
    assert (done.returncode, done.stdout) == (0, "sleeping\nleft True\n")


def test_calls_after_the_end_are_refused_and_do_not_hang(program):
    done = program("""
        import atexit
        machine = rig.machine()
        def late():
            for attempt in (lambda: machine.run(["echo"]), rig.machine().__enter__):
                try:
                    attempt()
                except RuntimeError as error:
                    print("refused")
        atexit.unregister(microvm.sync._loop._stop_at_exit)
        atexit.register(late)
        atexit.register(microvm.sync._loop._stop_at_exit)
        machine.__enter__()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left True\nrefused\nrefused\n", "")


def test_garbage_left_at_the_exit_complains_about_nothing(program):
    done = program("""
        machine = rig.machine().__enter__()
        block = machine.spawn(["cat"])
        process = block.__enter__()
        process.stdin.write(b"x")
        process.stdout.read1(1)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left True\n", "")


# --- Ctrl-C ----------------------------------------------------------------------------------


def test_ctrl_c_in_a_call_cancels_it_and_comes_out_of_it(argv):
    body = """
        with rig.machine() as machine:
            try:
                machine.run(["sleep"])
            except KeyboardInterrupt:
                print(rig.guest.cancelled)
            print(machine.run(["echo", "still"]).stdout)
    """
    with running(argv(body)) as process:
        assert process.stdout.readline() == "sleeping\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=BOUND_S)
    assert (process.returncode, out, errors) == (0, "['sleep']\nb'still'\nleft True\n", "")


def test_ctrl_c_that_nobody_catches_ends_the_machine_and_the_program(argv):
    body = """
        with rig.machine() as machine:
            machine.run(["sleep"])
    """
    with running(argv(body)) as process:
        assert process.stdout.readline() == "sleeping\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=BOUND_S)
    assert (process.returncode, out) == (-signal.SIGINT, "left True\n")
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_ctrl_c_while_a_machine_starts_leaves_none(argv):
    body = """
        import trio
        from contextlib import asynccontextmanager
        class Slow(type(rig.platform)):
            @asynccontextmanager
            async def start(self, plan):
                async with super().start(plan) as machine:
                    print("starting", flush=True)
                    await trio.sleep_forever()
                    yield machine
        rig.platform.__class__ = Slow
        try:
            with rig.machine():
                print("never")
        except KeyboardInterrupt:
            print("live", rig.platform.live)
    """
    with running(argv(body)) as process:
        assert process.stdout.readline() == "starting\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=BOUND_S)
    assert (process.returncode, errors) == (0, "")
    assert sorted(out.splitlines()) == ["left True", "live 0"]


def test_ctrl_c_at_any_moment_leaves_no_machine(program):
    """Wherever it strikes in entering, calling or leaving: in the end each start has its end."""
    done = program("""
        armed = False
        def interrupt(*_):
            global armed
            if armed:
                armed = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        rig.on_left = lambda: None
        with rig.machine() as machine:
            began = time.perf_counter()
            machine.run(["echo"])
        whole = 2 * (time.perf_counter() - began)
        for number in range(100):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, whole * (number + 1) / 100)
                while armed:  # a hook of the collector may have swallowed it
                    with rig.machine() as machine:
                        machine.run(["echo"])
            except KeyboardInterrupt:
                pass
        give_up = time.monotonic() + 30
        while rig.platform.live > 3 and time.monotonic() < give_up:
            time.sleep(0.01)
        # Between a block's `__enter__` and the block Python itself has a gap, hence not 0.
        print("few" if rig.platform.live <= 3 else rig.platform.live)
        microvm.sync._loop._stop_at_exit()
        print("live", rig.platform.live)
    """)
    assert (done.returncode, done.stdout) == (0, "few\nlive 0\n")


# --- fork ------------------------------------------------------------------------------------


def test_a_forked_child_can_not_use_its_parents_machine_and_does_not_end_it(program):
    """Row 99."""
    done = program("""
        with rig.machine() as machine:
            machine.wait_ready()
            with machine.spawn(["cat"]) as process, machine.forward(vsock_port=1) as forward:
                pid = os.fork()
                if pid == 0:
                    try:
                        machine.run(["echo"])
                    except RuntimeError as error:
                        print("child:", error, flush=True)
                    sys.exit(3)  # through every block, and atexit
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                process.stdin.write(b"ok")
                print(status, process.stdout.read1(9), machine.run(["echo", "mine"]).stdout)
    """)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first.startswith("child: This machine belongs to the process")
    assert rest == ["3 b'ok' b'mine'", "left True"]


def test_a_forked_child_has_machines_of_its_own(program):
    done = program("""
        with rig.machine() as machine:
            machine.wait_ready()
            pid = os.fork()
            if pid == 0:
                with rig.machine() as own:
                    print(own.run(["echo", "own"]).stdout, flush=True)
                sys.exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            print(machine.run(["echo", "mine"]).stdout, flush=True)
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["b'own'", "left False", "0", "b'mine'", "left True"]


def test_multiprocessing_by_fork_works_beside_a_machine(program):
    done = program("""
        import multiprocessing
        with rig.machine() as machine:
            machine.wait_ready()
            context = multiprocessing.get_context("fork")
            with context.Pool(2) as pool:
                print(pool.map(abs, [-1, -2]), flush=True)
            print(machine.run(["echo", "x"]).stdout, flush=True)
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[1, 2]", "b'x'", "left True"]


def test_the_loops_thread_ends_with_the_program_also_when_a_machine_hangs(program):
    done = program("""
        import trio
        microvm.sync._loop.STOP_WITHIN_S = 0.2
        def stuck():
            left()
            time.sleep(600)
        rig.on_left = stuck
        machine = rig.machine().__enter__()
        machine.wait_ready()
    """)
    assert (done.returncode, done.stdout) == (0, "left True\n")
    assert "had not ended" in done.stderr
