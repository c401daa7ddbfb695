"""`microvm run` when its guest, or what it writes to, goes in mid-command."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.linux_guest


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("reboot -f; sleep 60", b"The guest rebooted."),
        ("poweroff -f; sleep 60", b"The guest shut itself down."),
        ("echo c > /proc/sysrq-trigger; sleep 60", b"sysrq triggered crash"),
    ],
)
def test_a_guest_that_goes_in_mid_command_is_told_with_its_last_console_lines(
    cli, script: str, told: bytes
) -> None:
    done = cli("run", "--", "sh", "-c", script)
    assert done.returncode == 125
    assert told in done.stderr
    assert b"Last console lines" in done.stderr
    assert b"Traceback" not in done.stderr


def shell(line: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of shell in which $microvm is the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
        check=False,
        env={**os.environ, "microvm": f"{sys.executable} -m microvm"},
    )


def test_output_that_can_not_be_written_is_an_error_in_words() -> None:
    done = shell("$microvm run -- echo hi > /dev/full")
    assert done.returncode == 125
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_one_reader_of_both_outputs_that_goes_is_a_sigpipe() -> None:
    done = shell("$microvm run -- sh -c 'yes & yes >&2' 2>&1 | head -1")
    assert done.returncode == 141
    assert done.stdout == b"y\n"


def test_closed_standard_streams_are_as_dev_null() -> None:
    done = shell("$microvm run -- sh -c 'cat; echo hi; echo hi >&2; exit 3' <&- >&- 2>&-")
    assert done.returncode == 3
