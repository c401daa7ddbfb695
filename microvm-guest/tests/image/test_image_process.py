"""A build step's programs never outlive the build, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from microvm_guest.image.errors import BuildError, CacheError
from microvm_guest.image.process import (
    MAX_LINE_BYTES,
    TAIL_LINES,
    clean_environ,
    guarded,
    output_of,
    run,
)

HOLD = 'exec 9> "$0"; echo up >&9; (sleep 1000; true) & wait'
"""Opens the FIFO `$0` and keeps it open in a grandchild, too: its end is the end of all."""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_a_step_gives_its_lines_as_they_come() -> None:
    seen: list[str] = []
    run(["sh", "-c", "echo one; echo two >&2"], what="x", on_line=seen.append)
    assert seen == ["one", "two"]


def test_a_step_reads_nothing_of_the_builders_input() -> None:
    seen: list[str] = []
    run(["sh", "-c", "cat; echo end"], what="x", on_line=seen.append)
    assert seen == ["end"]


def test_a_step_that_fails_is_named_with_its_last_lines() -> None:
    with pytest.raises(BuildError) as caught:
        run(["sh", "-c", "for i in $(seq 100); do echo line $i; done; exit 3"], what="counting")
    text = str(caught.value)
    assert "counting" in text
    assert "exit code 3" in text
    assert "line 100" in text
    assert f"line {100 - TAIL_LINES}" not in text


def test_a_step_that_a_signal_ends_says_which() -> None:
    with pytest.raises(BuildError, match="signal 6"):
        run(["sh", "-c", "kill -ABRT $$"], what="x")


def test_a_full_disk_is_told_from_other_failures() -> None:
    with pytest.raises(CacheError, match="full") as caught:
        run(["sh", "-c", "echo 'cc1: No space left on device' >&2; exit 1"], what="x")
    assert "MICROVM_CACHE_DIR" in str(caught.value.remedy)


@pytest.mark.parametrize("use", [lambda argv: run(argv, what="x"), lambda a: output_of(a, what="")])
def test_a_missing_program_is_named(use: object) -> None:
    assert callable(use)
    with pytest.raises(BuildError, match="no-such-program-anywhere"):
        use(["no-such-program-anywhere"])


def test_noise_does_not_push_the_words_that_matter_out() -> None:
    script = "echo cause; for i in $(seq 100); do echo noise; done; exit 1"
    with pytest.raises(BuildError, match="cause"):
        run(["sh", "-c", script], what="x", is_noise=lambda line: line == "noise")


def test_a_line_without_end_comes_in_pieces() -> None:
    seen: list[str] = []
    run(["head", "-c", str(3 * MAX_LINE_BYTES), "/dev/zero"], what="x", on_line=seen.append)
    assert len(seen) == 3


def test_what_a_step_left_running_goes_with_it(fifo: Path) -> None:
    script = 'sh -c "$1" "$0" >/dev/null 2>&1 & read -r _ < "$2"; exit 0'
    go = fifo.with_name("go")
    os.mkfifo(go)
    with guarded(["sh", "-c", script, str(fifo), HOLD, str(go)]):
        held = fifo.open()
        assert held.readline() == "up\n"
        go.write_text("go\n")
    assert held.read() == ""
    held.close()


def test_an_interrupt_stops_the_whole_group(fifo: Path) -> None:
    with pytest.raises(KeyboardInterrupt), guarded(["sh", "-c", HOLD, str(fifo)]):
        held = fifo.open()
        assert held.readline() == "up\n"
        raise KeyboardInterrupt
    assert held.read() == ""
    held.close()


def test_a_builder_killed_takes_its_programs_with_it(fifo: Path) -> None:
    code = "import sys; from microvm_guest.image.process import run; run(sys.argv[1:], what='x')"
    builder = subprocess.Popen([sys.executable, "-c", code, "sh", "-c", HOLD, str(fifo)])
    with fifo.open() as held:
        assert held.readline() == "up\n"
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        assert held.read() == ""


def test_no_descriptor_and_no_process_is_left(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    run(["true"], what="x")
    with pytest.raises(BuildError):
        run(["false"], what="x")
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_builders_own_flags_do_not_reach_the_build() -> None:
    environ = {
        "PATH": "/bin",
        "HOME": "/root",
        "https_proxy": "http://proxy",
        "MAKEFLAGS": "-k",
        "CFLAGS": "-O0",
        "KBUILD_BUILD_USER": "me",
        "LC_ALL": "de_DE.UTF-8",
    }
    assert clean_environ(environ, {"SOURCE_DATE_EPOCH": "0"}) == {
        "PATH": "/bin",
        "HOME": "/root",
        "https_proxy": "http://proxy",
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "0",
    }
