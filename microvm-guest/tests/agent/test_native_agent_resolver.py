"""The agent's resolver: a name that takes long holds up no other."""

import shutil
import subprocess
from pathlib import Path

import pytest

from microvm_guest.agent import SOURCE_DIR, WARNINGS

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def test_a_name_asked_for_right_behind_a_slow_one_does_not_wait_for_it(tmp_path: Path) -> None:
    """The idle thread is the slow one's, though it has not come to take it yet."""
    binary = tmp_path / "resolver_order"
    sources = [Path(__file__).parent / "resolver_order.c", SOURCE_DIR / "resolver.c"]
    flags = [*WARNINGS, "-pthread", "-Wl,--wrap=pthread_cond_wait", "-I", str(SOURCE_DIR)]
    words = ["gcc", *flags, "-o", binary, *sources]
    subprocess.run(words, check=True)
    subprocess.run([binary], check=True, timeout=60)
