"""The command line's options of a machine, as far as no guest is needed."""

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from microvm.testing.boot_files import tiny_kernel

Done = subprocess.CompletedProcess[str]

STRANGER = """
from microvm.plugins import NetBackendFactory, hookimpl

@hookimpl
def microvm_register_net_backend():
    return NetBackendFactory(
        name="carrier-pigeon", summary="RFC 1149, 100% organic", create=None or (lambda o: None),
        syntax="carrier-pigeon:LOFT", parse_cli=lambda text: {"loft": text},
    )
"""


@pytest.fixture
def microvm(tmp_path: Path):
    (tmp_path / "run").mkdir(mode=0o700)

    def run(*words: str, **env: str) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "microvm", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "COLUMNS": "200", **env},
        )

    return run


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    return str(tiny_kernel(tmp_path / "kernel"))


def test_a_strangers_net_backend_shows_in_help(microvm, tmp_path: Path) -> None:
    info = tmp_path / "site" / "pigeon-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[microvm.net_backends]\ncarrier-pigeon = pigeon\n")
    (tmp_path / "site" / "pigeon.py").write_text(textwrap.dedent(STRANGER))
    for command in ("run", "shell"):
        done = microvm(command, "--help", PYTHONPATH=str(tmp_path / "site"))
        assert done.returncode == 0, done.stderr
        assert "carrier-pigeon:LOFT (RFC 1149, 100% organic)" in " ".join(done.stdout.split())
        assert "passt" in done.stdout


def test_only_asking_for_help_loads_plugins() -> None:
    program = (
        "import sys; from microvm.cli import build_parser; build_parser().parse_args("
        "['run', '--net', 'x', '--', 'true']); print(sorted({'trio', 'pluggy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--disk", "a,b.img"], "A comma in the path is written twice"),
        (["--console", "teletype"], "ring|file:PATH|stdio|pty"),
        (["--net", "pasta"], "pasta"),
        (["--net-capture", "f"], "Give one --net"),
        (["--device", "rng,fast"], "KEY=VALUE"),
        (["--name", "a/b"], "name: must be"),
        (["--console", "file:/no/such/folder/log"], "console.path"),
    ],
)
def test_what_can_not_be_says_what_to_write(microvm, kernel, words, said) -> None:
    done = microvm("run", "--kernel", kernel, *words, "--", "true")
    assert (done.returncode, done.stdout) == (125, ""), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--name", "x", "--json"],
        ["run", "--console", "stdio", "--tty", "--", "true"],
        ["run", "--console", "pty"],
        ["shell", "--console", "stdio"],
    ],
)
def test_what_makes_no_sense_together_is_a_usage_error(microvm, words) -> None:
    assert microvm(*words).returncode == 2


@pytest.mark.parametrize("verb", ["console", "stats", "balloon", "stop"])
def test_a_machine_that_is_not_there_is_named_with_what_to_do(microvm, verb) -> None:
    done = microvm(verb, "web-1")
    assert done.returncode == 125
    assert "No machine called 'web-1' is running.\nSee which are: microvm ls." in done.stderr


def test_without_machines_the_list_is_empty(microvm) -> None:
    assert (microvm("ls").stdout, microvm("ls").returncode) == ("", 0)
    assert json.loads(microvm("ls", "--json").stdout) == {"machines": []}


# --- a machine without a guest of Linux's -------------------------------------------------------


SERVER = """
import sys, trio
from pathlib import Path
from microvm.testing.platform import scripted_machine

async def guest(machine):
    machine.print(b"login: ")
    while b"root\\r" not in machine.typed:
        await trio.sleep(0.001)
    machine.print(b"\\x1b]0;owned\\x07welcome\\r\\n")

async def main():
    async with scripted_machine(Path(sys.argv[1]), guest, name="web-1") as machine:
        print("up", flush=True)
        print((await machine.wait()).reason.value, flush=True)

trio.run(main)
"""


@pytest.fixture
def named_machine(tmp_path: Path, kernel: str):
    (tmp_path / "run").mkdir(mode=0o700, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, kernel],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.stdout.close()
    process.wait()


def test_a_named_machine_is_listed_counted_and_stopped(microvm, named_machine) -> None:
    (listed,) = json.loads(microvm("ls", "--json").stdout)["machines"]
    assert (listed["name"], listed["state"], listed["pid"]) == (
        *("web-1", "running", named_machine.pid),
    )
    assert microvm("ls").stdout.splitlines()[1].split()[:3] == ["web-1", "running", "scripted"]
    stats = json.loads(microvm("stats", "web-1", "--json").stdout)
    assert stats["console"]["printed_bytes"] == 7
    assert "printed_bytes=7" in microvm("stats", "web-1").stdout
    stopped = microvm("stop", "web-1")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped: The host stopped it.\n")
    assert named_machine.stdout.readline() == "stopped\n"
    assert named_machine.wait(10) == 0
    assert microvm("stop", "web-1").returncode == 125


def test_watching_ends_with_the_machine(microvm, named_machine, tmp_path) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "microvm", "stats", "web-1", "--json", "--watch", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")},
    )
    with watching:
        first, second = watching.stdout.readline(), watching.stdout.readline()
        assert json.loads(first)["console"] == json.loads(second)["console"]
        microvm("stop", "web-1")
        _, said = watching.communicate(timeout=20)
    assert watching.returncode == 125
    assert "web-1" in said


@pytest.mark.parametrize("keys", [b"\x1d", b"~."])
def test_a_person_sits_down_at_the_console_and_leaves_it(named_machine, tmp_path, keys) -> None:
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - another program from here on
        os.environ["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
        os.execv(sys.executable, [sys.executable, "-m", "microvm", "console", "web-1"])
    shown = b""

    def until(ending: bytes) -> None:
        nonlocal shown
        while ending not in shown:
            shown += os.read(terminal, 4096)

    until(b"login: ")
    os.write(terminal, b"root\r")
    until(b"welcome\r\n")
    os.write(terminal, keys if keys != b"~." else b"\r~.")
    until(b"microvm: left")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"owned" not in shown
    assert named_machine.poll() is None
