"""What the command line says when it can't do as told. Nothing is booted here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from microvm.testing.boot_files import tiny_kernel

Done = subprocess.CompletedProcess[str]


def microvm(*words: str, **env: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "microvm", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **env},
    )


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return tiny_kernel(tmp_path / "kernel")


def test_an_unknown_backend_is_named_with_those_there_are() -> None:
    done = microvm("run", "--backend", "qemo", "--", "true")
    assert done.returncode == 125
    assert "qemo" in done.stderr
    assert "qemu" in done.stderr
    assert done.stdout == ""


def test_every_bad_option_is_told_at_once() -> None:
    done = microvm("run", "--mem-size-mib", "1", "--vcpus", "0", "--", "true")
    assert done.returncode == 125
    assert "mem_size_mib" in done.stderr
    assert "vcpu_count" in done.stderr


def test_an_initrd_without_a_kernel_says_what_to_add() -> None:
    done = microvm("run", "--initrd", "x", "--", "true")
    assert (done.returncode, "--kernel" in done.stderr) == (125, True)


def test_a_missing_command_is_a_usage_error() -> None:
    assert microvm("run").returncode == 2


def test_env_without_an_equals_sign_is_refused_before_anything_starts(kernel: Path) -> None:
    done = microvm("run", "-e", "A", "--kernel", str(kernel), "--", "true")
    assert (done.returncode, "NAME=VALUE" in done.stderr) == (125, True)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_empty(path: Path) -> None:
    path.touch()


def make_directory(path: Path) -> None:
    path.mkdir()


def make_truncated(path: Path) -> None:
    whole = tiny_kernel(path).read_bytes()
    path.write_bytes(whole[:-100])


def make_nothing(path: Path) -> None:
    pass


def make_text(path: Path) -> None:
    path.write_text("#!/bin/sh\n" * 1000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_fifo, "not a regular file"),
        (make_directory, "directory"),
        (make_empty, "empty"),
        (make_truncated, "cut short"),
        (make_nothing, "no such file"),
        (make_text, "neither"),
    ],
)
def test_a_kernel_that_can_not_be_one_is_refused_by_path_and_reason(
    make, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "kernel"
    make(path)
    done = microvm("run", "--kernel", str(path), "--", "true")
    assert done.returncode == 125
    assert str(path) in done.stderr
    assert words in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_with_json_a_failure_is_one_object_with_its_code(tmp_path: Path) -> None:
    done = microvm("run", "--json", "--kernel", str(tmp_path / "no"), "--", "true")
    report = json.loads(done.stdout)
    assert done.returncode == 125
    assert report["error"] == "boot.image"
    assert report["message"]


def test_without_an_image_the_remedy_is_to_build_one(tmp_path: Path) -> None:
    done = microvm("run", "--", "true", MICROVM_CACHE_DIR=str(tmp_path))
    assert done.returncode == 125
    assert "microvm image build" in done.stderr


def test_without_qemu_the_package_to_install_is_named(tmp_path: Path, kernel: Path) -> None:
    done = microvm("run", "--kernel", str(kernel), "--", "true", PATH=str(tmp_path))
    assert done.returncode == 125
    assert "qemu-system-x86" in done.stderr


def test_doctor_fails_and_says_why_without_qemu(tmp_path: Path) -> None:
    done = microvm("doctor", "--json", PATH=str(tmp_path))
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert not report["healthy"]
    assert any("qemu-system-x86" in str(c["remedy"]) for c in report["checks"])


def test_doctor_names_the_backend_that_is_not_there_and_those_that_are() -> None:
    done = microvm("doctor", "--no-boot", "--backend", "qemo")
    assert done.returncode == 1
    assert "No backend 'qemo' is installed." in done.stdout
    assert "qemu" in done.stdout
    assert "pip install" not in done.stdout


def test_a_reader_that_has_gone_ends_it_without_a_word() -> None:
    line = 'set -o pipefail; "$0" -m microvm plugins --json | true'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (141, b"")


def test_standard_streams_that_are_closed_become_dev_null_before_anything_is_opened() -> None:
    program = """
import os, sys
for fd in (0, 1, 2):
    os.close(fd)
from microvm.cli import main
code = main(["plugins"])
links = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
sys.exit(code if links == ["/dev/null"] * 3 else 99)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 0


def test_a_disabled_backend_is_missing_and_says_so(kernel: Path) -> None:
    done = microvm(
        "run", "--kernel", str(kernel), "--", "true", MICROVM_DISABLE_PLUGINS="backend/qemu"
    )
    assert done.returncode == 125
    assert "MICROVM_DISABLE_PLUGINS" in done.stderr


def test_version_is_printed_by_itself() -> None:
    assert microvm("--version").stdout.startswith("microvm 0.")
