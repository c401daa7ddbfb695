"""Two CPUs for two halves, programs in C for one of them, a census of descriptors, a front end.

What memory does to the halves is seen only where they run at once.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .vhost_user_echo import mapped, open_fds
from .vhost_user_front_end import FrontEnd


@pytest.fixture
def other_cpu() -> Iterator[int]:
    """A CPU for the other process; the test's thread keeps to another.

    Left to itself, Linux puts a process that is woken onto the CPU of its waker: then the two
    take turns.
    """
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("Two processes run at once on two CPUs only.")
    ours, *others = sorted(before)
    os.sched_setaffinity(0, {ours})
    yield others[-1]
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles a C program that lies beside the tests, by its name."""
    folder = tmp_path_factory.mktemp("compiled")

    def compile_program(name: str) -> Path:
        program = folder / name
        source = Path(__file__).with_name(f"{name}.c")
        warnings = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare"]
        subprocess.run(["gcc", "-O2", *warnings, "-o", program, source], check=True)
        return program

    return compile_program


@pytest.fixture
def no_fd_or_mapping_is_left() -> Iterator[None]:
    """As many descriptors after the test as before it, and no guest's memory mapped."""
    before = open_fds()
    yield
    assert len(open_fds()) == len(before)
    assert mapped() == 0


@pytest.fixture
def vmm() -> FrontEnd:
    front_end = FrontEnd()
    front_end.introduce()
    return front_end
