"""`microvm run` with a real guest, as a shell's user meets it."""

import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.linux_guest

MIB = 1024 * 1024


def test_streams_are_separate_and_the_exit_code_is_the_commands(cli) -> None:
    done = cli("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_a_command_ended_by_a_signal_exits_with_128_plus_its_number(cli) -> None:
    assert cli("run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_a_program_that_is_not_there_is_named(cli) -> None:
    done = cli("run", "--", "no-such-program")
    assert done.returncode == 125
    assert b"no-such-program" in done.stderr
    assert done.stdout == b""


def test_standard_input_reaches_the_command(cli) -> None:
    assert cli("run", "--", "wc", "-c", stdin=b"x" * 12345).stdout.strip() == b"12345"


def test_json_is_one_object_with_everything_in_it(cli, backend) -> None:
    done = cli("run", "--json", "--", "sh", "-c", "printf 'a\\377'; echo err >&2; exit 3")
    report = json.loads(done.stdout)
    assert done.returncode == 3
    assert report["exit_code"] == 3
    assert report["signal"] is None
    assert report["stdout"] == "a\\xff"
    assert report["stderr"] == "err\n"
    assert report["backend"] == backend
    assert report["reason"]
    begun = {"qemu": "spawn", "kvm": "vcpus"}[backend]
    assert {begun, "kernel", "agent", "command"} <= set(report["timing"])
    assert bool(report["exit_counts"]) == (backend == "kvm")


def test_a_forward_carries_a_host_socket_into_the_guest(tmp_path: Path, backend: str) -> None:
    serve = "echo 'from the guest' >/tmp/page; httpd -p 127.0.0.1:80 -h /tmp; printf .; read line"
    argv = ["run", "--backend", backend, "--forward", f"{tmp_path}/web:80", "--", "sh", "-c", serve]
    command = [sys.executable, "-m", "microvm", *argv]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.read(1) == b"."  # httpd listens by now
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/web")
            client.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            answer = client.makefile("rb").read()
        program.communicate(b"\n")
    assert answer.endswith(b"\r\n\r\nfrom the guest\n")
    assert program.returncode == 0


def test_timing_goes_to_stderr_alone(cli) -> None:
    done = cli("run", "--timing", "--", "true")
    assert done.stdout == b""
    assert b"kernel" in done.stderr
    assert b"total" in done.stderr


@pytest.mark.smp
def test_memory_and_cpus_are_as_asked(cli) -> None:
    script = "nproc; awk '/MemTotal/{print int($2/1024)}' /proc/meminfo"
    done = cli("run", "--mem-size-mib", "256", "--vcpus", "2", "--", "sh", "-c", script)
    cpus, mib = map(int, done.stdout.split())
    assert cpus == 2
    assert 200 < mib <= 256


def test_environment_directory_and_user_are_as_asked(cli) -> None:
    done = cli(
        "run", "-e", "A=b c", "--cwd", "/tmp", "--user", "nobody",
        "--", "sh", "-c", "echo $A; pwd; id -un",
    )  # fmt: skip
    assert done.stdout == b"b c\n/tmp\nnobody\n"


def test_200_mib_pass_through_cat_unchanged(tmp_path: Path) -> None:
    block = os.urandom(MIB)
    source, result = tmp_path / "in", tmp_path / "out"
    with source.open("wb") as file:
        for number in range(200):
            file.write(number.to_bytes(8) + block[8:])
    with source.open("rb") as stdin, result.open("wb") as stdout:
        subprocess.run(
            [sys.executable, "-m", "microvm", "run", "--", "cat"],
            stdin=stdin,
            stdout=stdout,
            check=True,
            timeout=300,
        )
    assert result.stat().st_size == 200 * MIB
    with source.open("rb") as sent, result.open("rb") as received:
        expected = hashlib.file_digest(sent, "sha256").digest()
        assert hashlib.file_digest(received, "sha256").digest() == expected


def wait_for_machine_of(pid: int) -> set[int]:
    """The processes that are gone when the machine of `pid` is, once there is one."""
    while True:
        found = qemus_below(pid)
        if found or has_vcpu(pid):
            return {pid, *found}
        time.sleep(0.01)


def qemus_below(pid: int) -> set[int]:
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            name = Path(f"/proc/{child}/comm").read_text()
            if name.startswith("qemu"):
                found.add(int(child))
    return found


def has_vcpu(pid: int) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed in between
            if "kvm-vcpu" in os.readlink(link):
                return True
    return False


def gone_within(pids: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    """A zombie is not alive: whoever inherits it reaps it in its own time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "microvm", "run", "--", "sh", "-c", "echo up; sleep 1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_kill_9_of_the_command_line_leaves_no_machine_within_2_s(slower) -> None:
    with start_sleeper() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        machine = wait_for_machine_of(process.pid)
        process.kill()
        assert gone_within(machine, 2 * slower)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_machine_within_a_second(
    slower: int, number: signal.Signals, code: int
) -> None:
    with start_sleeper() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        machine = wait_for_machine_of(process.pid)
        process.send_signal(number)
        assert gone_within(machine, slower)
        assert process.wait() == code
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_ctrl_c_while_the_guest_boots_ends_it_too(slower) -> None:
    with start_sleeper() as process:
        machine = wait_for_machine_of(process.pid)
        process.send_signal(signal.SIGINT)
        assert gone_within(machine, slower)
        assert process.wait() == 130


def test_a_reader_that_goes_away_ends_the_machine_as_sigpipe_would() -> None:
    command = [sys.executable, "-m", "microvm", "run", "--", "yes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(timeout=300) == 128 + signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_shell_on_a_terminal_echoes_and_knows_its_size() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(LINES="33", COLUMNS="99", TERM="dumb")
        os.execv(sys.executable, [sys.executable, "-m", "microvm", "shell"])
    os.write(terminal, b"stty size; echo $((6*7)); exit 5\n")
    printed = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # EIO: the other side has closed
            break
        printed += chunk
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5, printed
    assert b"33 99" in printed
    assert b"42" in printed


def test_json_does_not_wait_for_a_standard_input_that_nobody_ends() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "microvm", "run", "--json", "--", "sh", "-c", "read a; echo $a"],
            stdin=reading,
            stdout=subprocess.PIPE,
            timeout=600,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert json.loads(done.stdout)["stdout"] == "one\n"


def test_the_commands_own_options_need_no_separator(cli) -> None:
    assert cli("run", "echo", "-e", "a").stdout == b"a\n"
    assert cli("run", "--timing", "--", "echo", "--json").stdout == b"--json\n"
